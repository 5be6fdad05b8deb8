"""Evaluations and one's own images by a net of one output: as by the net with the two logits 0 and z."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import litcam
from cli_cases import ROOT, SMALL_RUN
from litcam import cli
from litcam.classifier import ViTClassifier
from litcam.data import FolderDataModule
from litcam.errors import InputError
from litcam.evaluation import evaluate
from litcam.own_images import explain_images

NAMES = ["cat", "dog"]
SIZE = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
METRICS = ("perturbation", "perturbation:protocol=chefer", "adcc")


def make_net(two_logits: bool) -> Any:
    """A random net of one output, or with the logits 0 and z of the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model("vit_tiny_patch16_224", num_classes=1, **SIZE)
        for parameter in net.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.12)
    if two_logits:
        weight, bias = net.head.weight.detach(), net.head.bias.detach()
        net.head, net.num_classes = nn.Linear(len(weight[0]), 2), 2
        net.head.weight.data = torch.cat([torch.zeros_like(weight), weight])
        net.head.bias.data = torch.cat([torch.zeros_like(bias), bias])
    return net.eval()


@pytest.fixture
def data(tmp_path: Path) -> FolderDataModule:
    """Pictures of two classes."""
    for number, (split, name) in enumerate((split, name) for split in ("train", "val") for name in NAMES):
        for place in range(3):
            pixels = np.random.default_rng(10 * number + place).integers(0, 255, (4, 4, 3), dtype=np.uint8)
            path = tmp_path / "data" / split / name / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).resize((64, 64)).save(path)
    module = FolderDataModule(str(tmp_path / "data"), batch_size=4, num_workers=0)
    mean = (0.5, 0.5, 0.5)
    module.use_data_config({"input_size": (3, 64, 64), "mean": mean, "std": mean, "interpolation": "bicubic"})
    return module


def numbers(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested results by their path."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, inner in entries for path, leaf in numbers(inner, f"{name}/{key}").items()}
    return {name: value}


@pytest.mark.parametrize("target", ["true", "predicted"])
def test_an_evaluation_is_that_of_two_logits(data: FolderDataModule, target: Any) -> None:
    one, two = (evaluate(make_net(two), data, ["rollout", "random"], METRICS, target=target) for two in (False, True))
    assert numbers(one.results) == pytest.approx(numbers(two.results), abs=1e-5, nan_ok=True)
    assert one.images["predicted"].tolist() == two.images["predicted"].tolist()
    assert set(one.images["predicted"]) == {0, 1}
    for column in ("probability", "target_probability"):
        assert one.images[column].tolist() == pytest.approx(two.images[column].tolist(), abs=1e-6)
    assert (one.images["probability"] >= 0.5).all()
    scores = one.results["methods"]["rollout"]["lerf"]
    assert 0 < scores["low"] < scores["value"] < scores["high"] < 1


def test_ones_own_images_are_classified_and_explained_as_by_two_logits(data: FolderDataModule, tmp_path: Path) -> None:
    found = []
    for two in (False, True):
        folder = tmp_path / str(two)
        explain_images(make_net(two), data, [tmp_path / "data" / "val"], ["rollout"], folder, targets=["cat", "dog"])
        found.append(json.loads((folder / "predictions.json").read_text()))
    assert numbers(found[0]) == pytest.approx(numbers(found[1]), abs=1e-6)
    first = found[0]["images"][0]
    assert sorted(entry["class"] for entry in first["top5"]) == NAMES
    assert sum(entry["probability"] for entry in first["top5"]) == pytest.approx(1)


class Wrapped(nn.Module):
    """A net with hyperparameters, as a LightningModule has them."""

    def __init__(self, multi_label: bool) -> None:
        super().__init__()
        self.net, self.hparams = make_net(two_logits=False), {"multi_label": multi_label}

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


@pytest.mark.parametrize(
    ("regression", "refusal"),
    [
        (True, "needs classes, but Wrapped was declared a regression"),
        (False, "multi_label is for a model of several outputs"),
    ],
)
def test_what_has_no_classes_or_several_labels_is_refused(
    data: FolderDataModule, tmp_path: Path, regression: bool, refusal: str
) -> None:
    module = Wrapped(multi_label=not regression)
    if regression:
        litcam.declare_regression(module.net)
    with pytest.raises(InputError, match=refusal):
        evaluate(module, data, ["rollout"])
    with pytest.raises(InputError, match=refusal):
        explain_images(module, data, [tmp_path / "data" / "val"], ["rollout"], tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.json").exists()


class OneColumn(FolderDataModule):
    """Multi-hot labels of a single class."""

    def evaluation_dataloader(self, *arguments: Any) -> Any:
        for batch in super().evaluation_dataloader(*arguments):
            yield {**batch, "label": torch.ones(len(batch["label"]), 1, dtype=torch.bool)}


def test_labels_of_another_number_of_classes_are_refused(data: FolderDataModule, tmp_path: Path) -> None:
    other = OneColumn(str(tmp_path / "data"), batch_size=4, num_workers=0)
    other.use_data_config(data.data_config)
    with pytest.raises(InputError, match="The labels are of 1 classes, but the model has 2"):
        evaluate(Wrapped(multi_label=False), other, ["rollout"], ["perturbation"])


def test_a_classifier_has_two_classes_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    for multi_label in (False, True):
        with pytest.raises(InputError, match="num_classes is 1, but data have at least two classes"):
            ViTClassifier("vit_mini_patch8_64", 1, False, multi_label=multi_label)
    with pytest.raises(SystemExit) as ended:
        cli.train(ROOT / "configs" / "digits.yaml", [*SMALL_RUN, "--model.num_classes=1"])
    assert ended.value.code == 2
    assert "num_classes is 1, but data have at least two classes" in capsys.readouterr().err
