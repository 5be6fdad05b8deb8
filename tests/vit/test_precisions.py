"""Nets and images in every precision: a map close to that of single precision, or one sentence."""

import copy
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import litcam
from conftest import make_images, make_net, relative_error
from litcam.errors import InputError, LitcamError, UnsupportedModelError
from litcam.explainers.evidence import Evidence
from litcam.explainers.libragrad import LibraGrad
from litcam.metrics import ADCC, Perturbation, Reliance

EXPLAINERS = [*litcam.list_explainers(), "captum:IntegratedGradients", "captum:GradientShap", "captum:Occlusion"]
REFUSE_HALF = {"reciprocam", "relevance", "token_dropping", "captum:Occlusion"}  # made of small differences
NO_SHAPE = {"uniform", "random"}  # constant; noise that follows from the pixels, which half precision rounds
QUICK: dict[str, dict[str, Any]] = {
    "rise": {"num_masks": 32, "cells": 3},
    "captum:IntegratedGradients": {"n_steps": 4},
    "captum:GradientShap": {"n_samples": 3},
}
HALVES = [torch.float16, torch.bfloat16]
KINDS = ["class_token", "average_pooled"]


def create(name: str, net: nn.Module) -> litcam.explainers.Explainer:
    """An explainer with options that spare time."""
    return litcam.create_explainer(name, net, **QUICK.get(name, {}))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every explainer with nets of both kinds of readout, as far as it takes them."""
    if "kind" in metafunc.fixturenames:
        pairs = [(name, kind) for name in EXPLAINERS for kind in KINDS if kind == "average_pooled" or name != "cam"]
        metafunc.parametrize(("name", "kind"), pairs)


@cache
def liveliest(name: str, kind: str) -> tuple[Tensor, Tensor]:
    """Of each image the class with the most uneven map, and that map [B, H·W]: some classes have constant ones."""
    net = make_net(kind)
    images = make_images(net)
    maps = create(name, net)(images, torch.arange(7).expand(len(images), -1)).heatmaps.flatten(2)
    classes = maps.std(-1).argmax(1)
    return classes, maps[torch.arange(len(images)), classes]


def correlation(maps: Tensor, others: Tensor) -> float:
    """The lowest correlation of pairs of maps [B, H·W]."""
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(maps, others, strict=True))


def test_double_precision_gives_the_maps_of_single_precision(name: str, kind: str) -> None:
    net = make_net(kind)
    images = make_images(net)
    targets, expected = liveliest(name, kind)
    within = 1e-3 if name == "relevance" else 1e-5  # its rules enlarge the rounding of single precision
    double = create(name, copy.deepcopy(net).double())
    for given in (images.double(), images):
        explanation = double(given, targets)
        assert explanation.heatmaps.dtype == torch.float32
        assert explanation.logits.dtype == torch.float64
        assert relative_error(explanation.heatmaps.flatten(1), expected) < within
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
        coarse = double(images, targets).heatmaps.flatten(1)
    assert relative_error(coarse, expected) < within
    single = create(name, net)(images.double(), targets)
    assert single.logits.dtype == torch.float32
    assert relative_error(single.heatmaps.flatten(1), expected) < 1e-6


@pytest.mark.parametrize("precision", HALVES)
def test_half_precision_gives_the_map_or_says_that_it_is_too_coarse(
    name: str, kind: str, precision: torch.dtype
) -> None:
    net = make_net(kind)
    images = make_images(net)
    explainer = create(name, copy.deepcopy(net).to(precision))
    if name in REFUSE_HALF:
        with pytest.raises(UnsupportedModelError, match=rf"^{name} is made of differences that {precision} is too co"):
            explainer(images, [0, 1, 2])
        return
    targets, expected = liveliest(name, kind)
    for given in (images, images.to(precision)):
        explanation = explainer(given, targets)
        assert explanation.heatmaps.dtype == torch.float32
        assert explanation.logits.dtype == precision
        if name not in NO_SHAPE:
            assert correlation(explanation.heatmaps.flatten(1), expected) > 0.99


@pytest.mark.parametrize("name", EXPLAINERS)
def test_images_in_half_precision_are_explained_by_a_net_in_single_precision(name: str) -> None:
    net = make_net("average_pooled")
    images = make_images(net).half()
    explainer = create(name, net)
    assert torch.equal(explainer(images, [0, 1, 2]).heatmaps, explainer(images.float(), [0, 1, 2]).heatmaps)


@pytest.mark.parametrize("name", ["agcam", "generic_attention", "rollout"])
def test_autocast_that_the_net_cannot_run_under_is_named(name: str) -> None:
    net = make_net("average_pooled").half()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InputError, match="does not run under autocast"):
        create(name, net)(make_images(net))


def test_pixels_beyond_the_range_of_the_net_are_named() -> None:
    net = make_net("class_token").half()
    images = make_images(net).double()
    images[1, 0, 0, 0] = 1e5
    with pytest.raises(InputError, match=r"infinite pixels at batch index 1, in the net's precision of torch.float16"):
        create("rollout", net)(images)


# ---------------------------------------------------------------------------------------------------------------------
# Modules in several precisions
# ---------------------------------------------------------------------------------------------------------------------


class FloatLogits(nn.Module):
    """A user's module that returns logits in single precision."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).float()


class FloatHead(nn.Module):
    """A user's module with a head in single precision, which stands before the net."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.head = copy.deepcopy(net.head).float()
        self.net = net
        self.net.head = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.net(images).float())


class FloatStem(nn.Module):
    """A user's module that takes images in single precision whatever its net takes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.stem = nn.Conv2d(3, 3, 1)
        nn.init.dirac_(self.stem.weight)
        nn.init.zeros_(self.stem.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(self.stem(images).to(self.net.cls_token))


@pytest.mark.parametrize("module", [FloatLogits, FloatHead, FloatStem])
@pytest.mark.parametrize("name", ["agcam", "evidence", "libragrad", "gradcam", "saliency", "captum:Saliency"])
def test_a_module_in_two_precisions_is_explained(name: str, module: type[nn.Module]) -> None:
    net = make_net("class_token")
    images = make_images(net)
    targets, expected = liveliest(name, "class_token")
    mixed = create(name, module(copy.deepcopy(net).bfloat16()))
    for given in (images, images.bfloat16()):
        assert correlation(mixed(given, targets).heatmaps.flatten(1), expected) > 0.99


def test_logits_that_are_cast_to_single_precision_after_autocast_are_the_recorded_ones(name: str, kind: str) -> None:
    if name in ("cam", *NO_SHAPE):  # the head of cam's net has to be the root's own
        return
    net = make_net(kind)
    images = make_images(net)
    targets, expected = liveliest(name, kind)
    explainer = create(name, FloatLogits(net))
    with torch.autocast("cpu", torch.bfloat16):
        inside = explainer(images, targets)
        trace = explainer.trace(images)
    outside = explainer.explain(trace, targets)  # as of a step of training
    assert inside.logits.dtype == torch.float32
    for explanation in (inside, outside):
        assert correlation(explanation.heatmaps.flatten(1), expected) > 0.97


# ---------------------------------------------------------------------------------------------------------------------
# Sums that are checked
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [LibraGrad, Evidence])
@pytest.mark.parametrize("precision", [*HALVES, "autocast"])
def test_rounding_is_not_called_a_part_that_is_not_linear(method: type, precision: torch.dtype | str) -> None:
    net = FloatLogits(make_net("class_token"))
    under = torch.autocast("cpu", torch.bfloat16) if precision == "autocast" else nullcontext()
    explainer = method(net if precision == "autocast" else net.to(precision))
    with under:
        trace = explainer.trace(make_images(net.net).to(next(net.parameters()).dtype))
        contributions = explainer.contributions(trace, torch.arange(7).expand(3, -1))
        contributions.check("it", net)
    assert float(contributions.error().max()) < 12 * torch.finfo(contributions.precision).eps


@pytest.mark.parametrize("precision", [torch.float32, *HALVES])
@pytest.mark.parametrize("method", [LibraGrad, Evidence])
def test_a_part_that_is_not_linear_is_named_in_every_precision(method: type, precision: torch.dtype) -> None:
    net = make_net("class_token")
    for block in net.blocks:
        block.mlp.act = nn.Softplus()
    with pytest.raises(UnsupportedModelError, match="a part that is not linear"):
        method(net.to(precision))(make_images(net), [0, 1, 2])


# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------


def scores(net: nn.Module, images: Tensor, precision: str) -> dict[str, Tensor]:
    """Numbers of all metrics that call the net."""
    explainer = litcam.create_explainer("agcam", net)
    maps = litcam.create_explainer("center", net)(images).upsample((64, 64))
    targets, regions = torch.tensor([0, 1, 2]), maps > 0.5

    def explain(images: Tensor, targets: Tensor) -> Tensor:
        return explainer(images, targets).upsample((64, 64))

    found = {}
    for protocol in ("agcam", "rise", "road"):
        metric = Perturbation(protocol, precision=precision, resamples=0, steps=4)
        metric.update(net, images, maps, targets)
        found |= {f"{protocol}.{name}": value for name, value in metric.compute().items()}
    adcc = ADCC(precision=precision, resamples=0)
    adcc.update(explain, net, images, maps, targets)
    found |= adcc.compute()
    for fill in ("swap", "mean", "blur"):
        reliance = Reliance(fill, precision=precision, resamples=0)
        reliance.update(net, images, regions, targets)
        found |= {f"{fill}.{name}": value for name, value in reliance.compute().items()}
    return found


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("precision", "within"), [(torch.float64, 1e-5), (torch.float16, 0.02), (torch.bfloat16, 0.05)], ids=str
)
def test_metrics_take_nets_and_images_in_every_precision(asked: str, precision: torch.dtype, within: float) -> None:
    net = make_net("class_token")
    images = make_images(net)
    expected = scores(net, images, "fp32")
    for given in (images, images.to(precision), images.double()):
        coarse = copy.deepcopy(net).to(precision)
        if asked == "bf16" and precision is torch.float16:
            with pytest.raises(LitcamError, match="autocast"):
                scores(coarse, given, asked)
            continue
        found = scores(coarse, given, asked)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            if "accuracy" not in name and "sensitivity" not in name and "reliance" not in name:  # of so few images
                torch.testing.assert_close(value.double(), expected[name].double(), rtol=within, atol=within)
