"""The CAM family, ReciproCAM and the methods that weight attention by gradients: against oracles."""

from typing import Any

import pytest
import torch
from torch import nn

import gradient_free_oracles
import litcam
import oracles
from conftest import make_images, make_net, relative_error
from litcam.errors import InputError, UnsupportedModelError
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
    "cam": (gradient_free_oracles.cam, {}),
}
EVERYWHERE = [name for name in ORACLES if name != "cam"]
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


@pytest.mark.parametrize("name", EVERYWHERE)
def test_every_class_of_every_image_equals_the_oracle(name: str, net: nn.Module) -> None:
    images, targets = make_images(net, 2), torch.arange(NUM_CLASSES).expand(2, -1)
    heatmaps = litcam.create_explainer(name, net)(images, targets).heatmaps
    expected = expected_maps(name, net, images)
    assert expected.flatten(2).amax(-1).gt(0).any()  # attention_gradcam: not all zero
    assert relative_error(heatmaps, expected) < 1e-5


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_eps_is_added_to_the_denominator_of_gradcam_plusplus(net: nn.Module, eps: float) -> None:
    images, targets = make_images(net, 1), torch.arange(NUM_CLASSES)[None]
    heatmaps = litcam.create_explainer("gradcam_plusplus", net, eps=eps)(images, targets).heatmaps
    assert relative_error(heatmaps, expected_maps("gradcam_plusplus", net, images, eps=eps)) < 1e-5
    exact = litcam.create_explainer("gradcam_plusplus", net)(images, targets).heatmaps
    assert torch.equal(heatmaps, exact) == (eps == 0)


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


def test_score_cam_equals_the_oracle(net: nn.Module) -> None:
    images, targets = make_images(net, 2), [2, 5]
    heatmaps = litcam.create_explainer("score_cam", net, batch_size=20)(images, torch.tensor(targets)).heatmaps
    expected = [gradient_free_oracles.score_cam(net, *pair) for pair in zip(images, targets, strict=True)]
    assert relative_error(heatmaps, torch.stack(expected)) < 1e-5


@pytest.mark.parametrize("normed_after_pooling", [True, False])
def test_cam_equals_the_oracle_and_adds_up_to_the_logits(normed_after_pooling: bool) -> None:
    net: Any = make_net("average_pooled" if normed_after_pooling else "average_pooled_one_norm")
    if normed_after_pooling:
        with torch.no_grad():
            net.fc_norm.weight.normal_(generator=torch.Generator().manual_seed(0))
            net.fc_norm.bias.normal_(generator=torch.Generator().manual_seed(1))
    images, targets = make_images(net, 2), torch.arange(NUM_CLASSES).expand(2, -1)
    explanation = litcam.create_explainer("cam", net)(images, targets)
    assert relative_error(explanation.heatmaps, expected_maps("cam", net, images)) < 1e-5
    rest = explanation.logits - explanation.heatmaps.mean((2, 3))  # what no patch has a part in
    torch.testing.assert_close(rest[0], rest[1], rtol=1e-4, atol=1e-5)


def test_cam_refuses_other_heads(class_token_net: nn.Module) -> None:
    with pytest.raises(UnsupportedModelError, match=r"cam needs a timm model with average pooling"):
        litcam.create_explainer("cam", class_token_net)

    class Rescaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net("average_pooled")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 2 * self.net(images)

    module = Rescaled().eval()
    with pytest.raises(UnsupportedModelError, match="the logits of Rescaled are not those of its head"):
        litcam.create_explainer("cam", module)(make_images(module.net))


@pytest.mark.parametrize("name", ["gradcam", "attention_gradcam", "reciprocam"])
def test_a_model_that_changes_its_mind_is_refused_by_the_methods_that_run_the_last_block_again(name: str) -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net("class_token")
            self.forwards = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.forwards += 1
            return self.net(images) * self.forwards

    module = Fickle().eval()
    with pytest.raises(
        UnsupportedModelError,
        match=r"Fickle( gives other logits when its last block runs again|: its logits are made of more than)",
    ):
        litcam.create_explainer(name, module)(make_images(module.net))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("reciprocam", {"kernel": "box"}, "choose one of gaussian, dirac"),
        ("reciprocam", {"feature": "norm2"}, "choose one of norm1, block"),
        ("reciprocam", {"score": "loss"}, "choose one of softmax, logit"),
        ("reciprocam", {"batch_size": 0}, "batch_size is 0; at least 1 is needed"),
        ("score_cam", {"batch_size": 0}, "batch_size is 0; at least 1 is needed"),
        ("gradcam_plusplus", {"eps": -1e-6}, "eps is -1e-06; a number of at least 0 is needed"),
        ("gradcam_plusplus", {"eps": float("nan")}, "eps is nan"),
        ("gradcam_plusplus", {"eps": float("inf")}, "eps is inf"),
        ("gradcam_plusplus", {"eps": "small"}, "eps is 'small'"),
    ],
)
def test_wrong_options_are_named(class_token_net: nn.Module, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        litcam.create_explainer(name, class_token_net, **options)
