"""The batch contract of the house: what every dataset gives, and what classifier, metrics and callbacks take.

Knows no dataset and no model.
"""

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from litcam.errors import InputError

VOID = 255


class Sample(TypedDict):
    """One image with its annotations, all in the same pixel geometry.

    Attributes:
        image: uint8 [3, H, W], RGB; the data module normalises it on the device.
        label: the class index.
        boxes: float32 [n, 4], (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; n may be 0.
        mask: uint8 [H, W]: 0 background, 1 … n the instance, 255 void.
        id: names the image, unique in its split.
    """

    image: Tensor
    label: int
    boxes: Tensor
    mask: Tensor
    id: str


class Batch(TypedDict):
    """Samples stacked.

    Attributes:
        image: [B, 3, H, W], uint8 from the loader, normalised float32 once it is on the device.
        label: int64 [B].
        boxes: float32 [K, 5]: the image's index in the batch, then x0, y0, x1, y1, as torchvision's operators take it.
        mask: uint8 [B, H, W].
        id: list of B names.
    """

    image: Tensor
    label: Tensor
    boxes: Tensor
    mask: Tensor
    id: list[str]


def collate(samples: list[Any]) -> dict[str, Any]:
    """Stack samples to a :class:`Batch`; a key that the samples lack stays away."""
    stacked: dict[str, Any] = {
        key: default_collate([sample[key] for sample in samples]) for key in samples[0] if key != "boxes"
    }
    if "boxes" in samples[0]:
        # One tensor, for a worker hands over each tensor separately, and one per image takes longer than drawing it.
        stacked["boxes"] = torch.cat([F.pad(sample["boxes"], (1, 0), value=i) for i, sample in enumerate(samples)])
    return stacked


def read_batch(batch: Any) -> Batch:
    """A batch as the house's contract has it; a pair of images and labels is taken too.

    Raises:
        InputError: if the batch has neither form, or labels are not class indices [B].
    """
    if isinstance(batch, list | tuple) and len(batch) >= 2:
        batch = {"image": batch[0], "label": batch[1]}
    if not isinstance(batch, Mapping) or not {"image", "label"} <= set(batch):
        raise InputError(
            f"The validation batch is a {type(batch).__name__}; the callbacks need a dict with 'image' and 'label', "
            "or a pair (images, labels)."
        )
    labels = batch["label"]
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(f"label has to be class indices [B], not {got}.")
    return batch  # type: ignore[return-value]  # other keys are checked by those who need them


def boxes_of(batch: Batch, index: int) -> Tensor:
    """The boxes [n, 4] of one image of a batch."""
    return batch["boxes"][batch["boxes"][:, 0] == index, 1:]


def box_regions(batch: Batch) -> Tensor:
    """The union of each image's filled boxes: bool [B, H, W].

    Box ends are exclusive; a pixel belongs to a box when its centre lies in it; what reaches beyond the image is cut
    off; an image without boxes has an empty region.
    """
    size, boxes, height, width = batch["image"].shape[:1], batch["boxes"], *batch["image"].shape[-2:]
    rows = torch.arange(height, device=boxes.device) + 0.5
    columns = torch.arange(width, device=boxes.device) + 0.5
    index, x0, y0, x1, y1 = boxes.unbind(-1)
    in_rows = (rows >= y0[:, None]) & (rows < y1[:, None])  # [K, H]
    in_columns = (columns >= x0[:, None]) & (columns < x1[:, None])  # [K, W]
    filled = in_rows[:, :, None] & in_columns[:, None, :]  # [K, H, W]
    count = torch.zeros(*size, height, width, dtype=torch.int32, device=boxes.device)
    return count.index_add_(0, index.long(), filled.int()) > 0


def mask_regions(batch: Batch) -> Tensor:
    """The pixels of the instances: bool [B, H, W]; background and void are outside."""
    return (batch["mask"] > 0) & (batch["mask"] != VOID)
