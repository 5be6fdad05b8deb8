"""Reliance of a net on the object and on the background of its images. Knows no explainer and no dataset."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from litcam.errors import InputError, check_choice
from litcam.logits import check_classifies
from litcam.metrics.functional.checks import check_maps, has_both
from litcam.metrics.functional.forwards import Net, Precision, check_batch, class_probability, forward, inference
from litcam.metrics.functional.perturbation import is_predicted

RelianceFill = Literal["swap", "mean", "blur"]
FILLS = ("swap", "mean", "blur")
BLUR_SHARE = 0.1  # σ of the blur, of the shorter side of the image
MOST_WAITING = 64  # images of one class that a stream of partners keeps until one of another class comes
_FAR = 1e-6  # weight of pixels beyond the Gaussian, so that every pixel has neighbours

RELIANCE_COLUMNS = (
    "accuracy",
    "accuracy_object",
    "accuracy_background",
    "probability",
    "probability_object",
    "probability_background",
)


def reliance(
    net: Net,
    images: Tensor,
    regions: Tensor,
    targets: Tensor,
    logits: Tensor | None = None,
    fill: RelianceFill = "swap",
    others: Tensor | None = None,
    other_regions: Tensor | None = None,
    batch_size: int = 128,
    precision: Precision = "fp32",
) -> Tensor:
    """What a net makes of whole images, of their objects alone and of their backgrounds alone: 2 forwards per image.

    Args:
        net: gives logits [b, C] of normalised images [b, 3, H, W]; a module is run in evaluation mode.
        images: normalised float [B, 3, H, W].
        regions: bool [B, H, W], where the object is.
        targets: the true classes [B].
        logits: [B, C] of the whole images, where they are known already: saves a forward.
        fill: what stands where pixels were removed; see :func:`object_and_background`.
        others: for ``"swap"`` another image for each [B, 3, H, W].
        other_regions: where the objects of those are, bool [B, H, W].
        batch_size: images per forward; bounds the memory.
        precision: ``"bf16"`` runs the forwards under autocast.

    Returns:
        Float64 [B, 6]: whether the class is predicted (0 or 1) for the three, then its probability.

    Raises:
        InputError: if shapes, dtypes or classes do not fit, the fill lacks other images, or the net was declared a
            regression.
    """
    check_classifies(net, "Reliance")
    check_images(images, regions, targets, logits)
    with inference(net, targets, precision) as call:
        if logits is None:
            logits = forward(call, images, batch_size)
        alone = object_and_background(images, regions, fill, others, other_regions)
        seen = [logits, *(forward(call, part, batch_size) for part in alone)]
    outcomes = [outcome(each, targets) for outcome in (is_predicted, class_probability) for each in seen]
    return torch.stack(outcomes, 1)


def object_and_background(
    images: Tensor,
    regions: Tensor,
    fill: RelianceFill = "swap",
    others: Tensor | None = None,
    other_regions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The images with their objects alone and with their backgrounds alone: [B, 3, H, W] each.

    What is removed is replaced by 0 in normalised space (``"mean"``); by what is kept, blurred into it (``"blur"``, see
    :func:`continued`); or by another image at the same place (``"swap"``). Where that one's own object would show, its
    background is blurred into it, so that no object but the image's own is ever seen.

    Args:
        images: normalised float [B, 3, H, W].
        regions: bool [B, H, W], where the object is.
        fill: one of these.
        others: for ``"swap"`` another image for each [B, 3, H, W].
        other_regions: where the objects of those are, bool [B, H, W].

    Raises:
        InputError: for another fill, or if ``"swap"`` lacks other images and regions of the same shape.
    """
    check_choice("fill", fill, FILLS)
    kept = regions[:, None]  # [B, 1, H, W]
    if fill == "mean":
        around = within = torch.zeros_like(images)
    elif fill == "blur":
        around, within = continued(images, kept), continued(images, ~kept)
    else:
        if others is None or other_regions is None:
            raise InputError("fill is 'swap': give others, another image for each, and other_regions, their objects.")
        if others.shape != images.shape or other_regions.shape != regions.shape or other_regions.dtype != torch.bool:
            raise InputError(
                f"others {list(others.shape)} and other_regions {other_regions.dtype} {list(other_regions.shape)} do "
                f"not fit images {list(images.shape)} and regions bool {list(regions.shape)}; the same are needed."
            )
        foreign = other_regions[:, None]
        around = within = torch.where(foreign, continued(others, ~foreign), others)
    return torch.where(kept, images, around), torch.where(kept, within, images)


def continued(images: Tensor, kept: Tensor) -> Tensor:
    """Gaussian means of the kept pixels, at every pixel, with σ = 0.1 of the shorter side.

    Unlike a plain blur nothing of the removed pixels is in it. Without any kept pixel it is 0.

    Args:
        images: [B, 3, H, W].
        kept: bool [B, 1, H, W].

    Returns:
        Like the images.
    """
    height, width = images.shape[-2:]
    down, across = (_gaussians(size, BLUR_SHARE * min(height, width), images.device) for size in (height, width))
    weights = kept.float()
    total = down @ (images.float() * weights) @ across  # [B, 3, H, W]
    weight = down @ weights @ across  # [B, 1, H, W]
    return (total / weight.clamp(min=torch.finfo(torch.float32).tiny)).to(images.dtype)


def relative_foreground_sensitivity(accuracy_object: Tensor, accuracy_background: Tensor) -> Tensor:
    """RFS of Moayeri et al. (CVPR 2022), in Hard ImageNet too: (a_object − a_background) / (2 · min(ā, 1 − ā)).

    a_object is the accuracy with the background spoilt, a_background that with the object spoilt, ā their mean. From
    −1 (only the background counts) to 1 (only the object does); NaN where both are 0 or both 1, which says nothing.
    """
    mean = (accuracy_object + accuracy_background) / 2
    return (accuracy_object - accuracy_background) / (2 * torch.minimum(mean, 1 - mean))


def next_of_another_class(targets: Tensor) -> Tensor:
    """For each of B images the next one of another class, going round: int64 [B]; −1 where all have one class."""
    count = len(targets)
    places = torch.arange(count, device=targets.device)
    ahead = (places - places[:, None] - 1) % max(1, count)  # [B, B]; 0 for the next
    ahead = ahead.masked_fill(targets[:, None] == targets, count)
    nearest, partner = ahead.min(1) if count else (places, places)
    return torch.where(nearest < count, partner, -1)


def check_images(images: Tensor, regions: Tensor, targets: Tensor, logits: Tensor | None = None) -> None:
    """Raise InputError unless there is a bool region of the image's size and a class of the logits for every image."""
    if images.ndim != 4 or regions.dtype != torch.bool or regions.shape != (len(images), *images.shape[-2:]):
        raise InputError(
            f"images {list(images.shape)} and regions {regions.dtype} {list(regions.shape)} do not fit: "
            "[B, 3, H, W] and bool [B, H, W] are needed."
        )
    check_maps(images[:, 0], "images, channel by channel,")
    check_batch(images, images[:, 0], targets, logits)


def _gaussians(size: int, sigma: float, device: torch.device) -> Tensor:
    """Weights between the pixels of a row: [size, size]."""
    places = torch.arange(size, dtype=torch.float32, device=device)
    return torch.exp(-0.5 * ((places - places[:, None]) / sigma) ** 2) + _FAR


class Regarded(NamedTuple):
    """Images of a stream: images [n, 3, H, W], regions [n, H, W], targets [n], logits [n, C]; places [n] name them."""

    images: Tensor
    regions: Tensor
    targets: Tensor
    logits: Tensor
    places: Tensor

    def take(self, chosen: Tensor) -> "Regarded":
        """Some of them."""
        return Regarded(*(tensor[chosen] for tensor in self))

    def to(self, device: torch.device) -> "Regarded":
        """The same on a device."""
        return Regarded(*(tensor.to(device) for tensor in self))

    @staticmethod
    def join(parts: "Sequence[Regarded]") -> "Regarded":
        """The images of all parts."""
        return Regarded(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class PartnerStream:
    """Gives each image of a stream the one of another class that came last before it, however the stream is batched.

    The first ones take the first of another class that comes after them; of a longer run of one class only the first 64
    wait for it. Images without an object or a background are nobody's partner. An image without a partner has an empty
    region for that.
    """

    def __init__(self) -> None:
        self._held: Regarded | None = None  # the last two of different classes, or all while there is but one class
        self._waiting = True

    def pair(self, batch: Regarded) -> Iterator[tuple[Regarded, Tensor, Tensor]]:
        """Images that have got their partners, the partners and the regions of those."""
        usable = has_both(batch.regions)
        if not bool(usable.all()):
            yield _alone(batch.take(~usable))
        pool = batch.take(usable)
        if self._held is not None:
            pool = Regarded.join([self._held, pool])
        if self._waiting and bool((late := _waits_too_long(pool.targets)).any()):
            yield _alone(pool.take(late))
            pool = pool.take(~late)
        differ = pool.targets[:, None] != pool.targets  # [n, n]
        if bool(differ.any()):
            begin = 0 if self._held is None or self._waiting else len(self._held.targets)
            partners = _last_before(differ)
            held = torch.stack([partners[-1], torch.full_like(partners[-1], len(partners) - 1)])
            self._held, self._waiting = pool.take(held), False
            if begin < len(partners):
                others = pool.take(partners[begin:])
                yield pool.take(torch.arange(begin, len(partners))), others.images, others.regions
        elif len(pool.targets):
            self._held = pool

    def end(self) -> Iterator[tuple[Regarded, Tensor, Tensor]]:
        """The images that have waited in vain."""
        if self._held is not None and self._waiting:
            yield _alone(self._held)


def _waits_too_long(targets: Tensor) -> Tensor:
    """Which images of a stream's beginning are of its first class, before any other, and beyond those that wait."""
    first_run = (targets != targets[:1]).cumsum(0) == 0
    return first_run & (torch.arange(len(targets), device=targets.device) >= MOST_WAITING)


def _alone(images: Regarded) -> tuple[Regarded, Tensor, Tensor]:
    """Images without partners."""
    return images, images.images, torch.zeros_like(images.regions)


def _last_before(differ: Tensor) -> Tensor:
    """For each of n images the last one before it that differs, or the first one after it: int64 [n]."""
    count = len(differ)
    places = torch.arange(count, device=differ.device)
    steps = places[:, None] - places  # above 0 for those before
    steps = torch.where(steps > 0, steps, count - steps).masked_fill(~differ, 3 * count)
    return steps.min(1).indices
