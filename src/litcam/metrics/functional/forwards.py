"""The net as the metrics call it: in evaluation, without a graph, in a precision of choice, a few images at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from litcam.errors import InputError
from litcam.logits import is_regression, num_targets, probabilities
from litcam.metrics.functional.checks import check_maps
from litcam.vit.context import evaluating
from litcam.vit.inputs import fitting
from litcam.vit.precision import in_precision_of

Net = nn.Module | Callable[[Tensor], Tensor]  # gives logits [b, C] of normalised images [b, 3, H, W]
Precision = Literal["fp32", "bf16"]
PRECISIONS = ("fp32", "bf16")


@contextmanager
def inference(net: Net, targets: Tensor, precision: Precision = "fp32") -> Iterator[Callable[[Tensor], Tensor]]:
    """The net to be called: a module in evaluation mode, without a graph, ``"bf16"`` under autocast, ``"fp32"`` not.

    Raises:
        InputError: at a call, if the net gives no logits [b, C] with the classes of ``targets`` among them, or cannot
            take the images.
    """
    device, reach, regression = targets.device.type, _reach(targets), is_regression(net)

    def call(images: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits = _answer(net, images)
        _check_logits(logits, len(images), reach, regression)
        return logits

    outside = torch.autocast(device, enabled=False)  # ends one around us; inside it the calls' own share cast weights
    with evaluating(net) if isinstance(net, nn.Module) else nullcontext(), torch.no_grad(), outside:
        yield call


def _answer(net: Net, images: Tensor) -> Tensor:
    """What a net says of images; a module gets them in the precision of its weights."""
    if not isinstance(net, nn.Module):
        return net(images)
    images = in_precision_of(net, images)
    with fitting(net, images):
        logits: Tensor = net(images)
    return logits


def forward(net: Callable[[Tensor], Tensor], images: Tensor, batch_size: int) -> Tensor:
    """Logits [B, C] of images, ``batch_size`` of them in one forward."""
    return torch.cat([net(part) for part in images.split(batch_size)])


def class_probability(logits: Tensor, targets: Tensor, multi_label: bool = False, regression: bool = False) -> Tensor:
    """Probability of the class, of a regression its value, see :func:`litcam.logits.probabilities`: float64 [B]."""
    return probabilities(logits.detach().double(), regression, multi_label).gather(1, targets[:, None])[:, 0]


def check_batch(
    images: Tensor, heatmaps: Tensor, targets: Tensor, logits: Tensor | None = None, regression: bool = False
) -> None:
    """Raise InputError unless there is a float map of the image's size, and a class of the logits, for every image."""
    check_maps(heatmaps, "heatmaps")
    if images.ndim != 4 or heatmaps.shape != (len(images), *images.shape[-2:]) or targets.shape != (len(images),):
        raise InputError(
            f"images {list(images.shape)}, heatmaps {list(heatmaps.shape)} and targets {list(targets.shape)} do not "
            "fit: [B, 3, H, W], [B, H, W] and [B] are needed."
        )
    if targets.dtype == torch.bool or targets.is_floating_point():
        raise InputError(f"targets have to be class indices (integers), not {targets.dtype}.")
    if logits is not None and len(targets):
        _check_logits(logits, len(images), _reach(targets), regression)


def _reach(targets: Tensor) -> tuple[int, int]:
    """The lowest and the highest class; asked once, for the device has to be waited for."""
    return int(targets.min()), int(targets.max())


def _check_logits(logits: object, count: int, reach: tuple[int, int], regression: bool) -> None:
    """Raise InputError unless logits are [count, C] and have the classes."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        got = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"logits are {got} for {count} images; a tensor [B, C] is needed, [B, 1] of a head of one output."
        )
    targets = num_targets(logits, regression)
    if reach[0] < 0 or reach[1] >= targets:
        raise InputError(
            f"targets reach from {reach[0]} to {reach[1]}, but logits are {list(logits.shape)} for {count} images: "
            f"{'a regression has the target 0' if targets == 1 else f'their classes are 0 to {targets - 1}'}."
        )
