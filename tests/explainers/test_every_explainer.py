"""What every explainer promises, whichever it is."""

import copy
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import Tensor, nn

import litcam
from conftest import NETS, SMALL, make_images, make_net
from litcam.errors import InputError, UnsupportedModelError

EXPLAINERS = [*litcam.list_explainers(), "captum:IntegratedGradients", "captum:GradientShap", "captum:Occlusion"]
QUICK: dict[str, dict[str, object]] = {  # options that spare time
    "rise": {"num_masks": 24, "cells": 3},
    "captum:IntegratedGradients": {"n_steps": 4},
    "captum:GradientShap": {"n_samples": 3},
}
ONLY = {"cam": ["average_pooled", "average_pooled_one_norm"]}  # the nets of a method that does not take all
ASK_THE_WHOLE = {"rise", "saliency", "captum:IntegratedGradients", "captum:GradientShap"}  # and do not look inside
WORKS_ON_PIXELS = {"saliency", "rise", *(name for name in EXPLAINERS if name.startswith("captum:"))}


def create(name: str, net: nn.Module) -> litcam.explainers.Explainer:
    """An explainer with options that spare time."""
    return litcam.create_explainer(name, net, **QUICK.get(name, {}))


@pytest.fixture(params=EXPLAINERS)
def name(request: pytest.FixtureRequest) -> str:
    """Every registered explainer in turn."""
    return request.param


@pytest.fixture
def its_net(name: str) -> nn.Module:
    """A small random net that the explainer takes."""
    return make_net(ONLY.get(name, ["class_token"])[0])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every explainer with every net that it takes."""
    if "kind" in metafunc.fixturenames:
        pairs = [(name, kind) for name in EXPLAINERS for kind in ONLY.get(name, NETS)]
        metafunc.parametrize(("name", "kind"), pairs)


def test_a_batch_equals_one_image_at_a_time(name: str, kind: str) -> None:
    net = make_net(kind)
    images, targets = make_images(net), torch.tensor([1, 0, 4])
    explainer = create(name, net)
    together = explainer(images, targets).heatmaps
    alone = torch.cat([explainer(images[i : i + 1], targets[i : i + 1]).heatmaps for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))


def test_an_explanation_has_the_shapes_and_types_it_promises(name: str, kind: str) -> None:
    net = make_net(kind)
    images = make_images(net)
    grid = tuple(side if name in WORKS_ON_PIXELS else side // 16 for side in images.shape[-2:])
    explanation = create(name, net)(images)
    assert explanation.heatmaps.shape == (3, *grid)
    assert explanation.heatmaps.dtype == torch.float32
    assert explanation.heatmaps.isfinite().all()
    torch.testing.assert_close(explanation.logits, net(images), rtol=1e-4, atol=1e-5)
    assert torch.equal(explanation.targets, explanation.logits.argmax(1))
    several = create(name, net)(images, torch.zeros(3, 2, dtype=torch.int64))
    assert several.heatmaps.shape == (3, 2, *grid)
    others = several.heatmaps[1:].clone()
    several.heatmaps[0].fill_(7.0)  # a caller may write into the maps, and into one of them alone
    assert torch.equal(several.heatmaps[1:], others)
    large = explanation.upsample((32, 48))
    assert large.shape == (3, 32, 48)
    assert large.min() >= 0
    assert large.max() <= 1


class State:
    """Everything about a model and the process that an explainer must leave as it was."""

    def __init__(self, net: nn.Module) -> None:
        self.tensors = {key: value.clone() for key, value in net.state_dict().items()}
        self.flags = [module.training for module in net.modules()]
        self.requires_grad = [parameter.requires_grad for parameter in net.parameters()]
        self.gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
        self.hooks = [
            (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
            for module in net.modules()
        ]
        self.random = torch.get_rng_state()
        self.modes = torch._C._len_torch_function_stack()
        self.attributes = [sorted(vars(module)) for module in net.modules()]

    def assert_same(self, other: "State") -> None:
        assert self.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(value, other.tensors[key]) for key, value in self.tensors.items())
        for key in ("flags", "requires_grad", "hooks", "modes", "attributes"):
            assert getattr(self, key) == getattr(other, key), key
        assert torch.equal(self.random, other.random)
        for before, after in zip(self.gradients, other.gradients, strict=True):
            assert (before is None) == (after is None)
            assert before is None or torch.equal(before, after)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("frozen", [False, True])
def test_no_trace_is_left_on_success(name: str, kind: str, mode: str, frozen: bool) -> None:
    net = make_net(kind)
    net.train(mode == "train")
    net.blocks[1].eval()  # a mixture of flags, as partly frozen training has
    net.requires_grad_(not frozen)
    if not frozen:
        net.head.weight.grad = torch.ones_like(net.head.weight)
    before = State(net)
    create(name, net)(make_images(net), torch.tensor([0, 1, 2]))
    before.assert_same(State(net))


class Failure(RuntimeError):
    """Raised on purpose in the middle of a forward."""


def test_no_trace_is_left_on_failure(name: str, its_net: nn.Module) -> None:
    net = its_net.train()
    explainer, images = create(name, net), make_images(net)

    def fail(*arguments: object) -> None:
        raise Failure

    handle = net.blocks[1].register_forward_hook(fail)
    before = State(net)
    with pytest.raises(Failure):
        explainer(images)
    before.assert_same(State(net))
    handle.remove()


@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_it_works_in_every_autograd_mode(name: str, its_net: nn.Module, grad: type) -> None:
    images, targets = make_images(its_net), torch.tensor([0, 1, 2])
    explainer = create(name, its_net)
    expected = explainer(images, targets).heatmaps
    with grad():
        torch.testing.assert_close(explainer(images.clone(), targets.clone()).heatmaps, expected)


def test_bfloat16_autocast_correlates_with_full_precision(name: str, its_net: nn.Module) -> None:
    images, explainer = make_images(its_net), create(name, its_net)
    # attention_gradcam has no map of a class whose weighted attention is negative: take each image's liveliest class.
    every_class = explainer(images, torch.arange(7).expand(3, -1)).heatmaps.flatten(2)
    targets = every_class.std(-1).argmax(1)
    exact = every_class[torch.arange(3), targets]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = explainer(images, targets).heatmaps.flatten(1)
    if name == "uniform":  # constant: nothing to correlate
        assert torch.equal(exact, coarse)
        return
    for one, other in zip(exact, coarse, strict=True):
        assert torch.corrcoef(torch.stack([one, other]))[0, 1] > 0.99


def test_a_compiled_model_gives_the_same_maps(name: str, its_net: nn.Module) -> None:
    images, targets = make_images(its_net), torch.tensor([0, 1, 2])
    expected = create(name, copy.deepcopy(its_net))(images, targets).heatmaps
    wrapped = torch.compile(copy.deepcopy(its_net), backend="eager")
    its_net.compile(backend="eager")
    for compiled in (wrapped, its_net):
        compiled(images)
        torch.testing.assert_close(create(name, compiled)(images, targets).heatmaps, expected)


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (torch.zeros(2, 3, 32, 32), None, "images are 32 by 32 pixels, but the net takes 64 by 64"),
        (torch.zeros(3, 64, 64), None, r"images have to be a normalised float tensor \[B, 3, H, W\]"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), None, "not torch.uint8"),
        (torch.full((2, 3, 64, 64), float("nan")), None, "NaN or infinite pixels at batch index 0, 1"),
        (torch.zeros(2, 3, 64, 64), torch.tensor([0, 7]), "targets reach from 0 to 7, but the model has 7 classes"),
        (torch.zeros(2, 3, 64, 64), torch.tensor([-1, 0]), "targets reach from -1 to 0"),
        (torch.zeros(2, 3, 64, 64), torch.tensor([0, 1, 2]), r"targets have the shape \[3\]; \[2\] or \[2, K\]"),
        (torch.zeros(2, 3, 64, 64), torch.tensor([0.0, 1.0]), "class indices"),
    ],
)
def test_wrong_input_is_named(
    name: str, its_net: nn.Module, images: Tensor, targets: Tensor | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        create(name, its_net)(images, targets)


def test_models_without_a_vision_transformer_are_refused_when_the_explainer_is_made(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"ResNet holds no Vision Transformer .* supported are timm's vit"):
        litcam.create_explainer(name, timm.create_model("resnet10t", pretrained=False))
    with pytest.raises(UnsupportedModelError, match="SwinTransformer holds no Vision Transformer"):
        litcam.create_explainer(
            name,
            timm.create_model(
                "swin_tiny_patch4_window7_224", pretrained=False, embed_dim=12, depths=(1, 1), num_heads=(1, 1)
            ),
        )


@pytest.mark.parametrize("architecture", ["cait_xxs24_224", "xcit_nano_12_p16_224"])
def test_models_without_global_attention_are_refused_by_methods_that_look_inside(name: str, architecture: str) -> None:
    net = timm.create_model(architecture, pretrained=False, num_classes=3, depth=2, embed_dim=16, num_heads=2).eval()
    refused = pytest.raises(UnsupportedModelError, match=r"self-attention calls|cam needs a timm model")
    with refused if name not in ASK_THE_WHOLE else nullcontext():
        assert create(name, net)(torch.randn(1, 3, 224, 224)).heatmaps.any()


def test_attention_that_is_not_fused_is_told_how_to_fuse_it(name: str, its_net: nn.Module) -> None:
    for block in its_net.blocks:
        block.attn.fused_attn = False
    refused = pytest.raises(UnsupportedModelError, match="set_fused_attn")
    with refused if name not in ASK_THE_WHOLE else nullcontext():
        assert create(name, its_net)(make_images(its_net)).heatmaps.any()


def test_a_dynamic_image_size_is_taken() -> None:
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, **{**SMALL, "dynamic_img_size": True}).eval()
    explanation = litcam.create_explainer("agcam", net)(torch.randn(1, 3, 80, 112))
    assert explanation.heatmaps.shape == (1, 5, 7)


def test_a_users_hook_sees_the_explained_forward_alone(name: str, its_net: nn.Module) -> None:
    shapes: list[tuple[int, ...]] = []
    for part in (its_net, its_net.blocks[0], its_net.blocks[-1].norm1, its_net.head):
        part.register_forward_hook(lambda part, arguments, output: shapes.append(tuple(output.shape)))
    images = make_images(its_net, 2)
    its_net(images)
    alone = shapes.copy()
    shapes.clear()
    create(name, its_net)(images, torch.tensor([1, 0]))
    assert shapes == alone


def test_a_users_hook_that_changes_something_is_part_of_the_model(name: str, its_net: nn.Module) -> None:
    images, targets = make_images(its_net, 2), torch.tensor([1, 0])
    doubled = copy.deepcopy(its_net)
    with torch.no_grad():
        doubled.head.weight *= 2
        doubled.head.bias *= 2
    expected = create(name, doubled)(images, targets)
    its_net.head.register_forward_hook(lambda head, arguments, output: output * 2)
    try:
        actual = create(name, its_net)(images, targets)
    except UnsupportedModelError:
        assert name in {"relevance", "cam"}, "its rules are for the layers as they are"
        return
    torch.testing.assert_close(actual.logits, expected.logits)
    assert_close(actual.heatmaps, expected.heatmaps)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal within the rounding of single precision."""
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
