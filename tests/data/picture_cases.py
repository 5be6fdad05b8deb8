"""Tiny pictures on disk whose object is a known rectangle."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from litcam.data import ImageFilesDataModule, Record
from litcam.data.module import Split

CONFIG: dict[str, Any] = {
    "input_size": (3, 48, 48),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
}
Box = tuple[int, int, int, int]


def paint(size: tuple[int, int], *boxes: Box) -> NDArray[np.uint8]:
    """Dark [H, W, 3] with light boxes; size is (width, height)."""
    picture = np.full((size[1], size[0], 3), 20, dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        picture[y0:y1, x0:x1] = 230
    return picture


def save_picture(path: Path, size: tuple[int, int] = (80, 60), *boxes: Box, **options: Any) -> Path:
    """An image file with light boxes on dark ground."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(paint(size, *boxes)).save(path, **options)
    return path


def save_mask(path: Path, size: tuple[int, int], *boxes: tuple[Box, int]) -> Path:
    """A grayscale PNG that has a value in each box, painted in turn."""
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    for (x0, y0, x1, y1), value in boxes:
        mask[y0:y1, x0:x1] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def truncate(path: Path, share: float = 0.5) -> Path:
    """Cut the end of a file off."""
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


def filled(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The pixels whose centre lies in each box: bool [n, H, W]."""
    rows, columns = torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    return ((rows >= y0) & (rows < y1))[:, :, None] & ((columns >= x0) & (columns < x1))[:, None, :]


class Pictures(ImageFilesDataModule):
    """Records that the test gives."""

    splits: tuple[Split, ...] = ("train", "val")

    def __init__(self, records: list[Record], **arguments: Any) -> None:
        super().__init__(".", **{"batch_size": 4, "num_workers": 0, **arguments})
        self.given = records
        self.use_data_config(CONFIG)

    @property
    def class_names(self) -> list[str]:
        return ["a", "b", "c"]

    def records(self, split: Split) -> list[Record]:
        return self.given
