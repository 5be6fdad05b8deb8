"""Logits that are NaN or infinite: no accuracy, score, map or prediction is made of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cli_cases import ROOT, SMALL_RUN
from conftest import make_images
from litcam import cli
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule
from litcam.errors import InputError
from litcam.evaluation import evaluate
from litcam.explainers import create_explainer
from litcam.logits import check_logits
from litcam.metrics.functional.perturbation import is_predicted, perturbation_curves
from test_checkpoints import refusal

SMALL = {"depth": 2, "embed_dim": 24, "num_heads": 2}


@pytest.fixture(scope="module")
def overflowing(run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose weights are finite, but too large for its logits to be."""
    checkpoint = torch.load(run[0] / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["state_dict"]["net.blocks.1.mlp.fc2.weight"].fill_(1e38)
    path = tmp_path_factory.mktemp("overflowing") / "last.ckpt"
    torch.save(checkpoint, path)
    return path


def test_the_first_image_whose_logits_are_not_finite_is_named() -> None:
    logits = torch.zeros(4, 3)
    check_logits(logits, "images")
    logits[2, 1], logits[3, 0] = -torch.inf, torch.nan
    with pytest.raises(InputError, match=r"logits of 2 of 4 images, the first of them 'c\.png', are NaN or infinite"):
        check_logits(logits, "images", ["a.png", "b.png", "c.png", "d.png"])


def test_an_evaluation_gives_no_accuracy_of_nan_logits(
    overflowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(tmp_path / "own.png")
    out = f"--output={tmp_path / 'out'}"
    sentence = refusal(lambda: cli.evaluate(["--ckpt_path", str(overflowing), "--methods", "center", out]), capsys)
    assert "error: The logits of 16 of 16 images, the first of them 'val-0-000000', are NaN or infinite" in sentence
    own = ["--ckpt_path", str(overflowing), "--images", str(tmp_path / "own.png"), "--methods", "center", out]
    assert "error: The logits of 1 of 1 images, the first of them" in refusal(lambda: cli.evaluate(own), capsys)
    assert not (tmp_path / "out" / "results.json").exists()
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["images"] == []


def test_a_training_that_diverges_ends_at_its_validation_without_a_checkpoint_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL_RUN, f"--trainer.logger.init_args.save_dir={tmp_path}", "--model.lr=1e20"]
    sentence = refusal(lambda: cli.train(ROOT / "configs" / "digits.yaml", words), capsys)
    assert sentence.startswith("error: The logits of 16 of 16 val images are NaN or infinite: the training has")
    assert list(tmp_path.rglob("*.ckpt")) == []


def test_the_accuracy_of_a_training_epoch_is_nan_once_logits_were() -> None:
    accuracy: Any = ViTClassifier("vit_mini_patch8_64", 10, False, SMALL).metrics["train_metrics"]
    logits, labels = torch.zeros(4, 10), torch.zeros(4, dtype=torch.long)
    accuracy.update(logits, labels)
    assert accuracy.compute()["train/accuracy"] == 1
    logits[1] = torch.nan
    accuracy.update(logits, labels)
    assert all(value.isnan() for value in accuracy.compute().values())
    accuracy.reset()
    accuracy.update(logits[:1], labels[:1])
    assert accuracy.compute()["train/accuracy"] == 1


def test_validation_and_test_refuse_them() -> None:
    module = ViTClassifier("vit_mini_patch8_64", 10, False, SMALL)
    nn.init.constant_(module.net.norm.weight, torch.nan)
    batch = next(iter(DigitScenesDataModule(num_val=4, batch_size=4, num_workers=0).val_dataloader()))
    for step in (module.validation_step, module.test_step):
        with pytest.raises(InputError, match=r"4 of 4 (val|test) images are NaN or infinite"):
            step({**batch, "image": batch["image"].float()[..., :64, :64]}, 0)


class Standardizing(nn.Module):
    """Divides each image by its spread first; one that is all of one colour has none."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.data_config = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images / images.std((1, 2, 3), keepdim=True))
        return logits


def test_a_model_that_fails_on_masked_images_alone_gets_no_scores(class_token_net: Any) -> None:
    model, images = Standardizing(class_token_net), make_images(class_token_net)
    assert bool(model(images).isfinite().all())
    data = DigitScenesDataModule(num_val=4, batch_size=4, num_workers=0)
    with pytest.raises(InputError, match="logits of images with parts removed or replaced are NaN or infinite"):
        evaluate(model, data, ["center"], ["perturbation"])
    curve, _ = perturbation_curves(model, images, torch.rand(3, 64, 64), torch.tensor([0, 1, 2]))
    assert curve[:, :-1].isfinite().all()
    assert curve[:, -1].isnan().all()
    logits = torch.tensor([[torch.nan, 0.0], [1.0, 0.0], [torch.inf, 0.0]])
    assert is_predicted(logits, torch.tensor([0, 0, 0])).tolist() == pytest.approx(
        [torch.nan, 1, torch.nan], nan_ok=True
    )


def test_no_class_is_predicted_from_nan_to_be_explained(class_token_net: Any) -> None:
    images = make_images(class_token_net)
    nn.init.constant_(class_token_net.norm.weight, torch.nan)
    with pytest.raises(InputError, match="The logits of 3 of 3 images are NaN or infinite"):
        create_explainer("agcam", class_token_net)(images)
