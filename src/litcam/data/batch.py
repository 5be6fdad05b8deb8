"""The batch contract of the house: what every dataset gives, and what classifier, metrics and callbacks take.

Knows no dataset and no model.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from litcam.errors import InputError, check_choice

Regions = Literal["boxes", "masks"]
ANNOTATIONS: Mapping[Regions, str] = {"boxes": "boxes", "masks": "mask"}  # the key in a batch of each kind of regions
Collate = Callable[[list[Any]], dict[str, Any]]
VOID = 255
_PACKED = "packed_boxes"
_PER_INSTANCE = ("boxes", "instance_labels")  # the keys with one row per instance, not one per image


class Sample(TypedDict):
    """One image with its annotations, all in the same pixel geometry.

    Attributes:
        image: uint8 [3, H, W], RGB; the data module normalises it on the device.
        label: the class index; where an image has several classes, multi-hot, bool [C].
        boxes: float32 [n, 4], (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; n may be 0.
        instance_labels: int64 [n], the class of each box; optional.
        mask: uint8 [H, W]: 0 background, 1 … n the instance, 255 void.
        id: names the image, unique in its split.
    """

    image: Tensor
    label: int | Tensor
    boxes: Tensor
    instance_labels: NotRequired[Tensor]
    mask: Tensor
    id: str


class Batch(TypedDict):
    """Samples stacked.

    Attributes:
        image: [B, 3, H, W], uint8 from the loader, normalised float32 once it is on the device.
        label: int64 [B], or multi-hot, bool [B, C].
        boxes: float32 [n, 5]: the image's index in the batch, then x0, y0, x1, y1, as torchvision's operators take it;
            sorted by image, those of an image in the order of the mask's values.
        instance_labels: int64 [n], the class of each box; optional.
        mask: uint8 [B, H, W].
        id: list of B names.
    """

    image: Tensor
    label: Tensor
    boxes: Tensor
    instance_labels: NotRequired[Tensor]
    mask: Tensor
    id: list[str]


def collate(samples: list[Any]) -> dict[str, Any]:
    """Stack samples to a :class:`Batch`; a key that the samples lack stays away."""
    stacked: dict[str, Any] = {
        key: default_collate([sample[key] for sample in samples]) for key in samples[0] if key not in _PER_INSTANCE
    }
    if "boxes" in samples[0]:
        # One tensor, for a worker hands over each tensor separately, and one per image takes longer than drawing it.
        stacked["boxes"] = torch.cat([F.pad(sample["boxes"], (1, 0), value=i) for i, sample in enumerate(samples)])
    if "instance_labels" in samples[0]:
        stacked["instance_labels"] = torch.cat([sample["instance_labels"] for sample in samples])
    return stacked


def collate_none(samples: list[Any]) -> dict[str, Any]:
    """The batch of none of these samples: like that of all, with 0 images."""
    return {key: values[:0] for key, values in collate(samples).items()}


def pack(collate: Collate, samples: list[Any]) -> dict[str, Any]:
    """The batch of samples, its boxes as integers of the same bits: for a way on which floats would be rounded."""
    batch = collate(samples)
    return {**batch, _PACKED: batch.pop("boxes").float().view(torch.int32)} if "boxes" in batch else batch


def unpack(batch: Batch) -> Batch:
    """The batch as it was before :func:`pack`."""
    if _PACKED not in batch:
        return batch
    found: dict[str, Any] = dict(batch)
    found["boxes"] = found.pop(_PACKED).view(torch.float32)
    return found  # type: ignore[return-value]  # as the batch was


def read_batch(batch: Any, multi_label: bool = False) -> Batch:
    """A batch as the house's contract has it; a pair of images and labels is taken too.

    Args:
        batch: a dict with 'image' and 'label', or a pair of them.
        multi_label: whether labels may be multi-hot, bool [B, C], as well as class indices [B].

    Raises:
        InputError: if the batch has neither form, or labels are of another kind.
    """
    if isinstance(batch, list | tuple) and len(batch) >= 2:
        batch = {"image": batch[0], "label": batch[1]}
    if not isinstance(batch, Mapping) or not {"image", "label"} <= set(batch):
        raise InputError(
            f"The validation batch is a {type(batch).__name__}; the callbacks need a dict with 'image' and 'label', "
            "or a pair (images, labels)."
        )
    labels = batch["label"]
    if not _are_class_indices(labels) and not (multi_label and _are_multi_hot(labels)):
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        needed = "class indices [B] or multi-hot bool [B, C]" if multi_label else "class indices [B]"
        floats = isinstance(labels, Tensor) and labels.is_floating_point()
        remedy = "; give whole numbers, and let the loss make floats of them" if floats else ""
        raise InputError(f"label has to be {needed}, not {got}{remedy}.")
    return batch  # type: ignore[return-value]  # other keys are checked by those who need them


def _are_class_indices(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()


def _are_multi_hot(labels: Any) -> bool:
    return isinstance(labels, Tensor) and labels.ndim == 2 and labels.dtype == torch.bool


def labelled_pairs(batch: Batch) -> tuple[Tensor, Tensor]:
    """Every class of every image: indices of the images in the batch and class indices, [M] each, images rising."""
    labels = batch["label"]
    if labels.ndim == 1:
        return torch.arange(len(labels), device=labels.device), labels
    images, classes = labels.nonzero(as_tuple=True)
    return images, classes


def take_images(batch: Batch, images: slice) -> Batch:
    """Some images of a batch that lie side by side, ``images.start`` to ``images.stop``, with what belongs to them."""
    found: dict[str, Any] = {key: value[images] for key, value in batch.items() if key not in _PER_INSTANCE}  # type: ignore[index]  # tensors and lists
    if "boxes" in batch:
        owner = _boxes(batch)[:, 0]
        chosen = (owner >= images.start) & (owner < images.stop)
        found |= {key: batch[key][chosen] for key in _PER_INSTANCE if key in batch}  # type: ignore[literal-required]  # its keys
        found["boxes"] = found["boxes"] - found["boxes"].new_tensor([images.start, 0, 0, 0, 0])
    return found  # type: ignore[return-value]  # as the batch was


def present_classes(batch: Batch) -> Tensor:
    """The classes that each image has: int64 [B, K], rising; with class indices as labels K is 1.

    Raises:
        InputError: if the images have different numbers of classes.
    """
    labels = batch["label"]
    if labels.ndim == 1:
        return labels[:, None]
    counts = labels.sum(1)
    if (counts != counts[0]).any():
        raise InputError(
            f"The images have {int(counts.min())} to {int(counts.max())} classes; the same number is needed."
        )
    return labels.nonzero()[:, 1].view(len(labels), int(counts[0]))


def boxes_of(batch: Batch, index: int, label: int | None = None) -> Tensor:
    """The boxes [n, 4] of one image of a batch, or of one class in it."""
    chosen = _boxes(batch)[:, 0] == index
    if label is not None:
        chosen &= batch["instance_labels"] == label
    return batch["boxes"][chosen, 1:]


def box_regions(batch: Batch) -> Tensor:
    """The union of each image's filled boxes: bool [B, H, W].

    Box ends are exclusive; a pixel belongs to a box when its centre lies in it; what reaches beyond the image is cut
    off; an image without boxes has an empty region.
    """
    return _unions(_filled_boxes(batch), _boxes(batch)[:, 0].long(), len(batch["image"]))


def mask_regions(batch: Batch) -> Tensor:
    """The pixels of the instances: bool [B, H, W]; background and void are outside."""
    return (batch["mask"] > 0) & (batch["mask"] != VOID)


def class_regions(batch: Batch, classes: Tensor, regions: Regions = "boxes") -> Tensor:
    """The region of each class that is asked for, in its image: bool [B, K, H, W].

    Args:
        batch: with boxes and instance_labels; for ``"masks"`` with the mask too.
        classes: class indices [B, K]; one that the image does not have gives an empty region.
        regions: ``"boxes"`` for the union of the filled boxes of the class's instances (see :func:`box_regions`),
            ``"masks"`` for their pixels.

    Raises:
        InputError: for other regions or shapes, and for a batch without instance_labels.
    """
    if classes.ndim != 2 or len(classes) != len(batch["image"]):
        raise InputError(f"classes have to be [B, K], one row for each image, not {list(classes.shape)}.")
    images = torch.arange(len(classes), device=classes.device).repeat_interleave(classes.shape[1])
    each = regions_of(batch, images, classes.flatten(), regions)
    return each.view(*classes.shape, *each.shape[1:])


def regions_of(batch: Batch, images: Tensor, classes: Tensor, regions: Regions = "boxes") -> Tensor:
    """The region of one class in one image, for M pairs of them: bool [M, H, W].

    Args:
        batch: as for :func:`class_regions`.
        images: index in the batch, [M].
        classes: class index, [M].
        regions: see :func:`class_regions`.

    Raises:
        InputError: for other regions, and for a batch without instance_labels.
    """
    check_choice("regions", regions, ANNOTATIONS)
    if "instance_labels" not in batch:
        raise InputError("The batch has no 'instance_labels', the class of each box; several classes need them.")
    image = _boxes(batch)[:, 0].long()
    filled = _filled_boxes(batch) if regions == "boxes" else _instance_pixels(batch)
    belongs = (image[:, None] == images) & (batch["instance_labels"][:, None] == classes)  # [n, M]
    instance, pair = belongs.nonzero(as_tuple=True)
    return _unions(filled[instance], pair, len(images))


def true_regions(batch: Batch, images: Tensor, classes: Tensor, kind: Regions) -> Tensor | None:
    """The true region of M pairs of image and class: bool [M, H, W]; None if the batch has no such annotation.

    With class indices as labels it is the region of the image, whatever the class; with multi-hot ones that of the
    class.

    Args:
        batch: with boxes, or for ``"masks"`` with the mask; for multi-hot labels with boxes and instance_labels.
        images: index in the batch, [M].
        classes: class index, [M].
        kind: as ``regions`` of :func:`class_regions`.

    Raises:
        InputError: for another kind, and for a multi-label batch without instance_labels.
    """
    check_choice("kind", kind, ANNOTATIONS)
    if ANNOTATIONS[kind] not in batch:
        return None
    if batch["label"].ndim == 1:
        return (box_regions if kind == "boxes" else mask_regions)(batch)[images]
    return regions_of(batch, images, classes, kind)


def missing_annotation(who: str, kind: Regions, otherwise: str) -> InputError:
    """The error of a callback or metric whose regions the batches lack; ``who`` has its verb."""
    return InputError(
        f"{who} {kind}, but the batches have no {ANNOTATIONS[kind]!r}; take a dataset that has them, or {otherwise}."
    )


def _boxes(batch: Batch) -> Tensor:
    """The boxes of a batch, unless a trainer has rounded them before anybody could see them."""
    boxes = batch["boxes"]
    if boxes.is_floating_point() and boxes.element_size() < torch.float32.itemsize:
        raise InputError(
            f"boxes are {boxes.dtype}, as Lightning's true half precisions make all floats of a batch, and that rounds "
            "pixels and the numbers of images: let the loader give whole pixels as int64, take a data module of "
            "litcam, or train with 32-true or bf16-mixed."
        )
    return boxes


def _filled_boxes(batch: Batch) -> Tensor:
    """The pixels of each of the n boxes of a batch: bool [n, H, W]."""
    boxes, (height, width) = _boxes(batch), batch["image"].shape[-2:]
    rows = torch.arange(height, device=boxes.device) + 0.5
    columns = torch.arange(width, device=boxes.device) + 0.5
    _, x0, y0, x1, y1 = boxes.unbind(-1)
    in_rows = (rows >= y0[:, None]) & (rows < y1[:, None])  # [n, H]
    in_columns = (columns >= x0[:, None]) & (columns < x1[:, None])  # [n, W]
    return in_rows[:, :, None] & in_columns[:, None, :]


def _instance_pixels(batch: Batch) -> Tensor:
    """The pixels of each of the n instances of a batch: bool [n, H, W]."""
    image = _boxes(batch)[:, 0].contiguous()
    before = torch.searchsorted(image, image)  # instances of earlier images
    number = torch.arange(1, len(image) + 1, device=image.device) - before  # in its own image: 1 … n
    return batch["mask"][image.long()] == number[:, None, None]


def _unions(pixels: Tensor, groups: Tensor, count: int) -> Tensor:
    """The union of the pixels [n, H, W] of each group, whose numbers are [n]: bool [count, H, W]."""
    total = torch.zeros(count, *pixels.shape[1:], dtype=torch.int32, device=pixels.device)
    return total.index_add_(0, groups, pixels.int()) > 0
