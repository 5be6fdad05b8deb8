"""The methods that weight attention or features by gradients, and ReciproCAM: against oracles."""

from typing import Any

import pytest
import torch
from torch import nn

import litcam
import oracles
from conftest import make_images, relative_error
from litcam.explainers.reciprocam import ReciproCAM

ORACLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "generic_attention": (oracles.generic_attention, {}),
    "attention_gradcam": (oracles.attention_gradcam, {}),
    "saw": (oracles.saw, {"scaled": False}),
    "saliency": (oracles.saliency, {}),
    "gradcam": (oracles.gradcam, {}),
    "gradcam_plusplus": (oracles.gradcam_plusplus, {}),
    "hirescam": (oracles.hirescam, {}),
    "reciprocam": (oracles.reciprocam, {}),
}
NUM_CLASSES = 7


def expected_maps(name: str, net: nn.Module, images: torch.Tensor, **options: Any) -> torch.Tensor:
    """The oracle's maps of every class: [B, C, gh, gw]."""
    oracle, fixed = ORACLES[name]
    return torch.stack(
        [
            torch.stack([oracle(net, image, target, **fixed, **options) for target in range(NUM_CLASSES)])
            for image in images
        ]
    )


@pytest.mark.parametrize("name", ORACLES)
def test_every_class_of_every_image_equals_the_oracle(name: str, net: nn.Module) -> None:
    images, targets = make_images(net, 2), torch.arange(NUM_CLASSES).expand(2, -1)
    heatmaps = litcam.create_explainer(name, net)(images, targets).heatmaps
    expected = expected_maps(name, net, images)
    assert expected.flatten(2).amax(-1).gt(0).any()  # attention_gradcam: not all zero
    assert relative_error(heatmaps, expected) < 1e-5


@pytest.mark.parametrize("kernel", ["gaussian", "dirac"])
@pytest.mark.parametrize("keep_class_token", [True, False])
@pytest.mark.parametrize("feature", ["norm1", "block"])
@pytest.mark.parametrize("score", ["softmax", "logit"])
def test_every_option_of_reciprocam_equals_the_oracle(
    net: nn.Module, kernel: str, keep_class_token: bool, feature: str, score: str
) -> None:
    options = {"kernel": kernel, "keep_class_token": keep_class_token, "feature": feature, "score": score}
    images, targets = make_images(net, 1), torch.arange(NUM_CLASSES)[None]
    heatmaps = litcam.create_explainer("reciprocam", net, **options)(images, targets).heatmaps
    assert relative_error(heatmaps, expected_maps("reciprocam", net, images, **options)) < 1e-5


def test_the_closed_form_of_reciprocam_is_what_class_token_models_take(
    class_token_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(class_token_net)
    explainer = litcam.create_explainer("reciprocam", class_token_net)
    fast = explainer(images).heatmaps
    with monkeypatch.context() as patch:
        patch.setattr(ReciproCAM, "_in_closed_form", lambda *arguments: None)
        slow = explainer(images).heatmaps
    assert relative_error(fast, slow) < 1e-5

    def forbidden(*arguments: object) -> None:
        raise AssertionError("the slow way was taken")

    monkeypatch.setattr(ReciproCAM, "_directly", forbidden)
    explainer(images)
