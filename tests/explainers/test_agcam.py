"""AGCAM against an oracle that builds every N×N matrix and differentiates one image at a time."""

from contextlib import nullcontext

import pytest
import timm
import torch
from torch import nn

import litcam
import oracles
from conftest import make_images, make_net, relative_error
from litcam.explainers.agcam import AGCAM
from litcam.vit.recorder import record


def oracle(net: nn.Module, images: torch.Tensor, targets: list[int], **options: str) -> torch.Tensor:
    return torch.stack(
        [oracles.agcam(net, image, target, **options) for image, target in zip(images, targets, strict=True)]
    )


@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
def test_a_batch_equals_the_oracle_image_by_image(net: nn.Module, context: type) -> None:
    images, targets = make_images(net), [0, 3, 6]
    with context():
        explanation = litcam.create_explainer("agcam", net)(images, torch.tensor(targets))
    assert relative_error(explanation.heatmaps, oracle(net, images, targets)) < 1e-5
    torch.testing.assert_close(explanation.logits, net(images), rtol=1e-5, atol=1e-5)


def test_vit_base_equals_the_oracle() -> None:
    torch.manual_seed(0)
    net = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=10).eval()
    images = make_images(net, count=2)
    with torch.inference_mode():
        heatmaps = litcam.create_explainer("agcam", net)(images, torch.tensor([1, 2])).heatmaps
    assert heatmaps.shape == (2, 14, 14)
    assert relative_error(heatmaps, oracle(net, images, [1, 2])) < 1e-5


def test_the_full_gradient_equals_the_oracle(net: nn.Module) -> None:
    images, targets = make_images(net), [2, 2, 5]
    heatmaps = litcam.create_explainer("agcam", net, gradient="full")(images, torch.tensor(targets)).heatmaps
    assert relative_error(heatmaps, oracle(net, images, targets, gradient="full")) < 1e-5


@pytest.mark.parametrize("head_fusion", ["sum", "mean", "max"])
@pytest.mark.parametrize("layer_fusion", ["sum", "mean", "max"])
def test_fusions_equal_the_oracle(class_token_net: nn.Module, head_fusion: str, layer_fusion: str) -> None:
    images, fusions = make_images(class_token_net, 1), {"head_fusion": head_fusion, "layer_fusion": layer_fusion}
    heatmaps = litcam.create_explainer("agcam", class_token_net, **fusions)(images, torch.tensor([4])).heatmaps
    assert relative_error(heatmaps, oracle(class_token_net, images, [4], **fusions)) < 1e-5


def test_several_classes_per_image_equal_one_class_at_a_time(net: nn.Module) -> None:
    images, targets = make_images(net), torch.tensor([[0, 1], [2, 3], [6, 0]])
    explainer = litcam.create_explainer("agcam", net)
    together = explainer(images, targets)
    assert together.heatmaps.shape[:2] == (3, 2)
    assert torch.equal(together.targets, targets)
    for position in range(2):
        alone = explainer(images, targets[:, position]).heatmaps
        torch.testing.assert_close(together.heatmaps[:, position], alone, rtol=1e-5, atol=1e-7)


def test_a_class_token_model_is_replayed_without_a_second_forward(
    class_token_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: object) -> None:
        raise AssertionError("the slow way was taken")

    monkeypatch.setattr(AGCAM, "_differentiated", forbidden)
    litcam.create_explainer("agcam", class_token_net)(make_images(class_token_net))


def test_the_replay_and_the_differentiated_forward_agree(class_token_net: nn.Module) -> None:
    images = make_images(class_token_net)
    explainer = AGCAM(class_token_net)
    trace = record(explainer.vit, images, {explainer: explainer.read})
    targets = torch.tensor([[1], [2], [3]])
    replayed, differentiated = explainer._replayed(trace, targets), explainer._differentiated(trace, targets)
    assert replayed is not None
    for fast, slow in zip(replayed, differentiated, strict=True):
        assert relative_error(fast, slow) < 1e-5


class HeadOnTheClassToken(nn.Module):
    """A module of a user: the net of timm without its head, and a head of their own on the pooled output."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = make_net("class_token")
        self.backbone.reset_classifier(0)
        self.classifier = nn.Linear(48, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.backbone(images))


def test_a_head_of_the_users_own_is_explained_through_its_own_logits() -> None:
    module = HeadOnTheClassToken().eval()
    images = make_images(module.backbone)
    explanation = litcam.create_explainer("agcam", module)(images)
    torch.testing.assert_close(explanation.logits, module(images))

    with_head = make_net("class_token")
    with_head.load_state_dict(
        {**module.backbone.state_dict(), **{k: v for k, v in with_head.state_dict().items() if "head." in k}}
    )
    with_head.head = module.classifier  # the same function as a plain timm model
    expected = oracle(with_head, images, explanation.targets.tolist())
    assert relative_error(explanation.heatmaps, expected) < 1e-5
