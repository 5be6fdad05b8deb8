"""Methods on a head of one output: the maps of its two classes are those of the equal net of two outputs."""

import copy

import pytest
import torch
from torch import Tensor, nn

import litcam
from conftest import make_images, make_net, relative_error
from litcam.errors import InputError
from litcam.explainers.rise import RISE

QUICK: dict[str, dict[str, object]] = {"rise": {"num_masks": 24, "cells": 3}}
OF_PROBABILITIES = {"reciprocam", "rise", "token_dropping", "libragrad"}
LOGIT = {"reciprocam": "logit", "token_dropping": "logit", "libragrad": "logit"}
METHODS = [name for name in litcam.list_explainers() if name not in {"random", "center", "uniform"}]


def one_output(name: str) -> nn.Module:
    """A net of one output, in double precision: relevance divides by small sums."""
    net = make_net("average_pooled" if name == "cam" else "class_token").double()
    weight, bias = net.head.weight[:1], net.head.bias[:1] + 0.3
    net.head = nn.Linear(48, 1).double()
    with torch.no_grad():
        net.head.weight.copy_(weight)
        net.head.bias.copy_(bias)
    return net.eval()


def with_outputs(net: nn.Module, factors: list[float]) -> nn.Module:
    """The net with multiples of its one output."""
    other = copy.deepcopy(net)
    other.head = nn.Linear(48, len(factors)).double()
    with torch.no_grad():
        other.head.weight.copy_(torch.tensor(factors)[:, None] * net.head.weight)
        other.head.bias.copy_(torch.tensor(factors) * net.head.bias)
    return other.eval()


def maps(name: str, net: nn.Module, images: Tensor, targets: Tensor | None, **options: object) -> Tensor:
    """Of any method, quickly."""
    return litcam.create_explainer(name, net, **QUICK.get(name, {}), **options)(images, targets).heatmaps


@pytest.mark.parametrize("name", METHODS)
def test_both_classes_of_one_output_have_the_maps_of_two(name: str) -> None:
    net = one_output(name)
    images, targets = make_images(net, 2).double(), torch.tensor([[0, 1], [1, 0]])
    # Of (-z/2, z/2) the softmax is sigmoid(z); the scores whose gradients count are (-z, z).
    equal = with_outputs(net, [-0.5, 0.5] if name in OF_PROBABILITIES else [-1.0, 1.0])
    actual = maps(name, net, images, targets)
    if name != "score_cam":  # whose weights are a softmax over channels
        assert relative_error(actual, maps(name, equal, images, targets)) < 1e-5
    # Saliency is the size of a gradient, which the sign of the score does not change.
    differ = litcam.explainers.check_explainer(name).class_specific and name != "saliency"
    assert bool(((actual[:, 0] - actual[:, 1]).abs() > 1e-3 * actual.abs().max()).any()) == differ


def test_the_predicted_class_is_that_of_the_sign_and_other_targets_are_named(class_token_net: nn.Module) -> None:
    net = one_output("agcam")
    images = make_images(net, 6).double()
    explanation = litcam.create_explainer("agcam", net)(images)
    assert explanation.logits.shape == (6, 1)
    assert torch.equal(explanation.targets, (explanation.logits[:, 0] > 0).long())
    with pytest.raises(InputError, match="2 classes: 0 to 1"):
        litcam.create_explainer("agcam", net)(images, torch.full((6,), 2))


@pytest.mark.parametrize("name", METHODS)
def test_a_declared_regression_is_explained_by_its_value(name: str) -> None:
    net = one_output(name)
    images, value = make_images(net, 2).double(), torch.zeros(2, dtype=torch.int64)
    options = {"score": LOGIT[name]} if name in LOGIT else {}
    positive = maps(name, net, images, value + 1, **options)  # of class 1, whose score is the value
    litcam.declare_regression(net)
    actual = maps(name, net, images, value)
    assert torch.equal(actual, maps(name, net, images, None))
    if name == "rise":
        explainer = RISE(net, num_masks=24, cells=3)
        masks = torch.cat(list(explainer._masks(*images.shape[-2:]))).double()
        with torch.no_grad():
            values = torch.stack([net(image * masks[:, None])[:, 0] for image in images])
        positive = torch.einsum("bn,nhw->bhw", values, masks).float() / (0.5 * 24)
    assert relative_error(actual, positive) < 1e-5
    with pytest.raises(InputError, match=r"1 classes|0 to 0"):
        maps(name, net, images, value + 1)
