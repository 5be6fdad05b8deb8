"""Metrics of a net of one output: those of the net with the two logits 0 and z; of a regression those of its value."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import litcam
from litcam.errors import InputError
from litcam.heatmaps import upsample
from litcam.metrics import ADCC, Perturbation, Reliance
from litcam.metrics.functional import PROTOCOLS
from litcam.metrics.functional.perturbation import is_predicted
from litcam.metrics.image_metric import ImageMetric

COUNT, SIZE = 6, 16
TARGETS = torch.tensor([1, 0, 1, 1, 1, 0])
SCALE = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class OneOutput(nn.Module):
    """A linear net; its output has the other sign for some of the images."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(3 * SIZE * SIZE, 1, generator=generator) / 10)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


class TwoLogits(nn.Module):
    """The same with the logits 0 and z, of which the softmax is the sigmoid of z."""

    def __init__(self) -> None:
        super().__init__()
        self.net = OneOutput()

    def forward(self, images: Tensor) -> Tensor:
        z = self.net(images)
        return torch.cat([torch.zeros_like(z), z], 1)


def images_and_maps() -> tuple[Tensor, Tensor, Tensor]:
    """Images, maps and regions."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(COUNT, 3, SIZE, SIZE, generator=generator)
    maps = upsample(torch.rand(COUNT, 4, 4, generator=generator), (SIZE, SIZE))
    return images, maps, torch.rand(COUNT, SIZE, SIZE, generator=generator) > 0.6


def explain(images: Tensor, targets: Tensor) -> Tensor:
    """Maps of images, for ADCC."""
    return upsample(images.abs().mean(1)[:, ::4, ::4], (SIZE, SIZE))


def updated(metric: ImageMetric, net: nn.Module, known: bool) -> dict[str, Tensor]:
    """What a metric says of a net, with its logits known before or not."""
    images, maps, regions = images_and_maps()
    logits = net(images) if known else None
    if isinstance(metric, ADCC):
        metric.update(explain, net, images, maps, TARGETS, logits)
    else:
        metric.update(net, images, regions if isinstance(metric, Reliance) else maps, TARGETS, logits)
    scores: dict[str, Tensor] = metric.compute()
    return scores


METRICS: dict[str, Callable[[], ImageMetric]] = {
    **{name: lambda name=name: Perturbation(name, **SCALE) for name in PROTOCOLS},  # type: ignore[misc]  # mypy knows no default of a lambda
    "adcc": ADCC,
    "reliance": Reliance,
}


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", METRICS)
def test_scores_curves_and_intervals_are_those_of_two_logits(name: str, known: bool) -> None:
    found, expected = (updated(METRICS[name](), net, known) for net in (OneOutput(), TwoLogits()))
    assert found.keys() == expected.keys()
    for score, value in expected.items():
        torch.testing.assert_close(found[score], value, rtol=0, atol=1e-9, equal_nan=True)
    of_first = next(iter(found))
    assert found[f"{of_first}_low"] < found[of_first] < found[f"{of_first}_high"]


def test_both_classes_are_predicted() -> None:
    logits = torch.tensor([[-1.0], [2.0], [-3.0], [torch.nan]])
    targets = torch.tensor([0, 0, 1, 0])
    assert is_predicted(logits, targets).nan_to_num(9).tolist() == [1, 0, 0, 9]


class Sum(nn.Module):
    """The sum of the first channel, less 50."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :1].flatten(1).sum(1, keepdim=True) - 50


@pytest.mark.parametrize("inside", [False, True])
def test_the_curves_of_a_regression_are_its_values_done_by_hand(inside: bool) -> None:
    """Ten pixels, of which one has 91 and nine have 1; values are negative too, and no share is taken of them."""
    images = torch.ones(1, 3, 2, 5)
    images[0, :, 0, 0] = 91.0
    heatmaps = torch.arange(10, 0, -1.0).view(1, 2, 5)
    net: nn.Module = litcam.declare_regression(Sum())
    metric = Perturbation()
    metric.update(nn.Sequential(net) if inside else net, images, heatmaps, torch.tensor([0]))
    scores = metric.compute()
    most_first = [50, -41, -42, -43, -44, -45, -46, -47, -48, -49, -50]
    least_first = [50, 49, 48, 47, 46, 45, 44, 43, 42, 41, -50]
    assert scores["morf_curve"].tolist() == most_first
    assert scores["lerf_curve"].tolist() == least_first
    assert float(scores["abpc"]) == pytest.approx((sum(least_first) - sum(most_first)) / 11)


def test_a_function_is_declared_too() -> None:
    images, maps, _ = images_and_maps()
    net = OneOutput()

    def function(images: Tensor) -> Tensor:
        output: Tensor = net(images)
        return output

    values = {}
    for name, each in (("declared", litcam.declare_regression(net)), ("function", function)):
        metric = Perturbation()
        metric.update(each, images, maps, torch.zeros(COUNT, dtype=torch.int64))
        values[name] = metric.compute()["lerf"]
    assert 0 < values["function"] < 1  # nobody has said that it is a regression
    metric = Perturbation()
    metric.update(litcam.declare_regression(function), images, maps, torch.zeros(COUNT, dtype=torch.int64))
    assert metric.compute()["lerf"] == values["declared"]


REGRESSION = litcam.declare_regression(OneOutput())


@pytest.mark.parametrize(
    ("metric", "net", "refusal"),
    [
        (Perturbation("chefer", **SCALE), REGRESSION, "Right predictions can be counted of classes alone"),
        (ADCC(), REGRESSION, "ADCC needs classes, but OneOutput was declared a regression"),
        (Reliance("mean"), REGRESSION, "Reliance needs classes, but OneOutput was declared a regression"),
        (Perturbation(multi_label=True), OneOutput(), "multi_label is for a model of several outputs"),
        (Perturbation("chefer", **SCALE, multi_label=True), OneOutput(), "multi_label is for a model of several"),
        (ADCC(multi_label=True), OneOutput(), "multi_label is for a model of several outputs"),
        (Perturbation(), litcam.declare_regression(TwoLogits()), "declared a regression, but has 2 outputs"),
        (
            Perturbation(),
            lambda images: images.mean((1, 2, 3)),
            r"logits are \[\d+\] for \d+ images; a tensor",
        ),
        (Perturbation(), lambda images: (images.mean((2, 3)),), "logits are a tuple for"),
    ],
)
@pytest.mark.parametrize("known", [False, True])
def test_what_a_net_cannot_be_asked_is_refused(metric: ImageMetric, net: Any, refusal: str, known: bool) -> None:
    images, maps, regions = images_and_maps()
    arguments = (net, images, regions if isinstance(metric, Reliance) else maps, torch.zeros(COUNT, dtype=torch.int64))
    first = (explain,) if isinstance(metric, ADCC) else ()
    with pytest.raises(InputError, match=refusal):
        metric.update(*first, *arguments, net(images) if known else None)


@pytest.mark.parametrize(
    ("net", "target", "refusal"),
    [
        (OneOutput(), 2, "from 2 to 2, but logits are .* their classes are 0 to 1"),
        (OneOutput(), -1, "from -1 to -1, but logits are .* their classes are 0 to 1"),
        (REGRESSION, 1, "from 1 to 1, but logits are .* a regression has the target 0"),
    ],
)
def test_a_target_that_the_output_does_not_have_is_refused(net: nn.Module, target: int, refusal: str) -> None:
    images, maps, _ = images_and_maps()
    for logits in (None, net(images)):
        with pytest.raises(InputError, match=refusal):
            Perturbation().update(net, images, maps, torch.full((COUNT,), target), logits)
    with pytest.raises(InputError, match="targets have to be class indices"):  # as a binary loss takes them
        Perturbation().update(net, images, maps, torch.zeros(COUNT))


def test_two_logits_of_a_binary_loss_are_followed_by_their_sigmoid() -> None:
    images, maps, _ = images_and_maps()
    net = TwoLogits()
    metric = Perturbation(multi_label=True)
    metric.update(net, images, maps, TARGETS)
    expected = net(images).double().sigmoid().gather(1, TARGETS[:, None]).mean().item()
    assert float(metric.compute()["lerf_curve"][0]) == pytest.approx(expected)
