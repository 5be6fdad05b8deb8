"""What comes through the door: images and classes, each right for the model or refused in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from litcam.errors import InputError, LitcamError
from litcam.logits import check_logits, num_targets, predicted_classes
from litcam.vit.model import ViT
from litcam.vit.precision import FLOATS, in_precision_of, takes

_INTEGERS = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


def check_images(vit: ViT, images: object) -> Tensor:
    """Images as a plain tensor [B, C, H, W] without a graph, in the precision of the net; B may be 0.

    Whether the model takes their channels is seen when it runs, see :func:`fitting`.

    Raises:
        InputError: unless they are floats [B, C, H, W], finite in the net's precision.
    """
    if not isinstance(images, Tensor) or not _is_batch(images):
        raise InputError(f"images have to be a normalised float tensor [B, 3, H, W], not {_described(images)}.")
    images = images.detach().as_subclass(Tensor)
    if 0 in images.shape[1:]:
        raise InputError(f"images {list(images.shape)} have no pixels; [B, 3, H, W] is needed.")
    images = in_precision_of(vit.root, images)
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten().tolist()
        where = f"at batch index {', '.join(map(str, bad[:8]))}"
        raise InputError(f"images hold NaN or infinite pixels {where}, in the net's precision of {images.dtype}.")
    return images


def _is_batch(images: Tensor) -> bool:
    """Whether a tensor is a float [B, C, H, W] whose numbers are there to be read."""
    readable = not images.is_nested and images.layout is torch.strided and not images.is_meta
    return readable and images.dtype in FLOATS and images.ndim == 4


def _described(images: object) -> str:
    """What was given in place of images, and what makes images of it."""
    if isinstance(images, np.ndarray):
        return f"a numpy array {images.dtype} {list(images.shape)}: torch.from_numpy makes a tensor of it"
    if isinstance(images, list | tuple) and images and all(isinstance(image, Tensor) for image in images):
        return f"a {type(images).__name__} of tensors: torch.stack makes a batch of it"
    if not isinstance(images, Tensor):
        return type(images).__name__
    if images.is_nested or images.layout is not torch.strided:
        return "a nested tensor" if images.is_nested else f"a tensor of the layout {images.layout}"
    described = f"{images.dtype} {list(images.shape)}"
    if images.is_meta:
        return f"{described} on the meta device, where no pixels are"
    if images.dtype not in FLOATS:
        return f"{described}: scale and normalise them as for the net's training"
    return f"{described}: images[None] makes a batch of one image" if images.ndim == 3 else described


@contextmanager
def fitting(module: nn.Module, images: Tensor) -> Iterator[None]:
    """Name what a module cannot take about images, where its forward inside fails on them.

    That is seen by other images, like these but for one property, with which the forward succeeds; where there are none
    the error is the module's own, and stays.

    Raises:
        InputError: in place of an error that autocast, or the images' device or number of channels, is the reason of.
    """
    try:
        yield
    except (LitcamError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = _misfit(module, images)
        if reason is None:
            raise
        raise InputError(reason) from error


def _misfit(module: nn.Module, images: Tensor) -> str | None:
    """In a sentence, why a module cannot take images [B, C, H, W]; None where that is not seen."""
    name, image = type(module).__name__, images[:1]
    device = next((parameter.device for parameter in module.parameters()), image.device)
    if device.type == "meta":
        return f"{name} has no weights: its parameters are on the meta device."
    if takes(module, image):
        return None
    with torch.autocast(device.type, enabled=False):
        if takes(module, image):
            return f"{name} in {image.dtype} does not run under autocast, but without: explain it outside of autocast."
    if device != image.device and takes(module, image.to(device)):
        return f"images are on {image.device}, but {name} takes them on {device}: images.to({str(device)!r})."
    blank = image.new_zeros(1, 1, *image.shape[2:], device=device)
    taken = [count for count in _possible_channels(module) if takes(module, blank.expand(-1, count, -1, -1))]
    if not taken or image.shape[1] in taken:
        return None
    return f"images have {image.shape[1]} channels, but {name} takes {' or '.join(map(str, taken))}."


def _possible_channels(module: nn.Module) -> list[int]:
    """How many channels images may have: as many as a convolution takes, or few."""
    return sorted({*range(1, 17), *(parameter.shape[1] for parameter in module.parameters() if parameter.ndim == 4)})


# ---------------------------------------------------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------------------------------------------------


def check_targets(targets: object, logits: Tensor, regression: bool = False) -> Tensor:
    """Class indices [B] or [B, K], int64 on the logits' device; None means the predicted classes.

    A matrix of zeros and ones with a column for each of three classes or more is refused, for it is one of labels: as
    indices it would name a class twice for every image. With two classes ``[0, 1]`` means both of them.

    Args:
        targets: a tensor, an array, or a sequence of numbers.
        logits: [B, C], of the images.
        regression: whether the model was declared one.

    Raises:
        InputError: for anything else.
    """
    if targets is None:
        check_logits(logits, "images")
        return predicted_classes(logits, regression)
    indices = _as_tensor(targets)
    batch, classes = len(logits), num_targets(logits, regression)
    if indices.dtype not in _INTEGERS and (indices.numel() or indices.ndim != 1):  # of [] torch makes float32
        remedy = "targets.long()" if indices.ndim < 2 else "targets.argmax(1) of one-hot labels"
        raise InputError(f"targets have to be class indices (integers), not {indices.dtype}; {remedy} gives such.")
    if indices.ndim not in (1, 2) or len(indices) != batch or 0 in indices.shape[1:] or (batch and not indices.numel()):
        raise InputError(f"targets have the shape {list(indices.shape)}; [{batch}] or [{batch}, K] is needed.")
    indices = indices.to(logits.device).long()
    if batch:
        _check_classes(indices, classes)
    return indices


def _as_tensor(targets: object) -> Tensor:
    """Targets of any kind as a tensor."""
    if isinstance(targets, Tensor):
        if targets.is_nested or targets.layout is not torch.strided or targets.is_meta:
            raise InputError("targets have to be a dense tensor with its numbers in memory: [B] or [B, K].")
        return targets.detach().as_subclass(Tensor)
    try:
        return torch.as_tensor(targets.copy() if isinstance(targets, np.ndarray) else targets)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"targets have to be class indices (integers), [B], or [B, K] with as many for every image; of the "
            f"{type(targets).__name__} that was given no such tensor can be made."
        ) from error


def _check_classes(targets: Tensor, classes: int) -> None:
    """Raise InputError unless int64 targets, at least one, are among so many classes, and are no labels."""
    lowest, highest = int(targets.min()), int(targets.max())
    if lowest < 0 or highest >= classes:
        raise InputError(
            f"targets reach from {lowest} to {highest}, but the model has {classes} classes: 0 to {classes - 1}."
        )
    if targets.ndim == 2 and targets.shape[1] >= classes > 2 and highest <= 1:
        raise InputError(
            f"targets {list(targets.shape)} of zeros and ones are labels, not class indices; targets.argmax(1) of "
            "one-hot labels gives such, and several classes of an image are named once each."
        )
