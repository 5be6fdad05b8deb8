"""Few images are explained at a time, so that memory is bounded; what comes out is as of the whole batch."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from test_evaluation import OneToThreeClasses, make_run

from litcam.data import DigitScenesDataModule, SceneStyle
from litcam.data.batch import take_images
from litcam.evaluation import evaluate, measuring
from litcam.explainers import Explainer
from litcam.explainers.agcam import AGCAM
from litcam.memory import activation_bytes, images_at_once
from litcam.vit.model import find_vit
from litcam.vit.trace import AttentionTrace

METHODS = ("agcam", "generic_attention", "rollout", "random")
METRICS = ("localization", "max_box_acc", "class_discrimination", "perturbation:protocol=road:steps=2", "adcc")


def arrays_of(module: Any, data: Any, at_once: int, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """All that is measured, explaining so many pairs of image and class at a time."""
    patch.setattr(measuring, "images_at_once", lambda *_: at_once)
    found = evaluate(module, data, METHODS, METRICS, num_images=5, perturbation_images=3)
    parts = list(found.measurements.parts)
    return {f"{number}/{name}": array for number, part in enumerate(parts) for name, array in part.items()}


@pytest.mark.parametrize("classes", [1, 2])
def test_the_numbers_are_those_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch, classes: int) -> None:
    module, data = make_run()
    data.style = SceneStyle(classes=classes)
    whole = arrays_of(module, data, 1000, monkeypatch)
    for at_once in (1, 3):
        few = arrays_of(module, data, at_once, monkeypatch)
        assert few.keys() == whole.keys()
        for name in few.keys() - {key for key in few if key.endswith(("seconds", "seal"))}:
            assert few[name].shape == whole[name].shape, name
            if few[name].dtype.kind == "U":
                assert few[name].tolist() == whole[name].tolist()
            else:
                tolerance = 1e-3 if name.endswith("maps") else 1e-5  # a half has three digits
                np.testing.assert_allclose(few[name], whole[name], rtol=0, atol=tolerance, err_msg=name)


def test_no_more_pairs_are_explained_at_a_time_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = make_run()
    module.hparams["multi_label"] = True
    data = OneToThreeClasses(classes=2, batch_size=4, num_workers=0)
    data.use_data_config(module.data_config)
    seen: list[int] = []
    heatmaps = AGCAM.heatmaps

    def spy(self: Explainer, trace: AttentionTrace, targets: torch.Tensor) -> torch.Tensor:
        seen.append(len(trace.images))
        return heatmaps(self, trace, targets)

    monkeypatch.setattr(AGCAM, "heatmaps", spy)
    monkeypatch.setattr(measuring, "images_at_once", lambda *_: 3)
    evaluate(module, data, ["agcam"], ["perturbation"], perturbation_images=0)
    assert seen == [2, 3, 3, 2, 2]  # of 1, 1, 3, 3 and of 2, 2 classes


def test_images_without_a_class_go_with_others() -> None:
    few = [(some.start, some.stop) for some in measuring._few([0, 3, 0, 0, 2, 5, 0], 4)]
    assert few == [(0, 4), (4, 5), (5, 7)]
    assert [(some.start, some.stop) for some in measuring._few([0, 0], 4)] == [(0, 2)]


def test_images_of_a_batch_keep_their_boxes_and_masks() -> None:
    data = DigitScenesDataModule(classes=2, num_val=6, batch_size=6, num_workers=0)
    batch = next(iter(data.val_dataloader()))
    taken = take_images(batch, slice(2, 5))
    samples = [data.dataset("val")[index] for index in (2, 3, 4)]
    assert taken.keys() == batch.keys()
    assert taken["id"] == [sample["id"] for sample in samples]
    for index, sample in enumerate(samples):
        own = taken["boxes"][:, 0] == index
        assert torch.equal(taken["boxes"][own, 1:], sample["boxes"])
        assert torch.equal(taken["instance_labels"][own], sample["instance_labels"])
        assert torch.equal(taken["mask"][index], sample["mask"])
        assert torch.equal(taken["image"][index], sample["image"])


def test_how_many_fit_follows_from_what_a_forward_keeps() -> None:
    small, large = (
        find_vit(timm.create_model("vit_mini_patch8_64", pretrained=False, img_size=size).eval()) for size in (64, 128)
    )
    image = torch.zeros(1, 3, 64, 64)
    one, two = (activation_bytes(small, image.expand(count, -1, -1, -1)) for count in (1, 2))
    tokens, width, depth = 65, small.net.embed_dim, len(small.blocks)
    assert two == pytest.approx(2 * one, rel=0.05)
    assert one > 4 * tokens * width * depth * 6  # queries, keys, values, MLPs and norms of every block
    assert images_at_once(small, image) > 3 * images_at_once(large, torch.zeros(1, 3, 128, 128)) > 3
