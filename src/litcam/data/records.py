"""Record: one image on disk with its annotations, as every dataset of files describes it. Knows no pixels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MaskValues = Literal["instances", "classes", "object"]


@dataclass(frozen=True)
class Record:
    """One image of a dataset, in the pixel geometry of its file (turned upright, where its EXIF data say so).

    Attributes:
        path: of the image file.
        labels: class indices: one, or in a multi-label dataset all classes of the image, rising.
        id: names the image, unique in its split.
        boxes: (x0, y0, x1, y1) in pixels of the file, x1 and y1 exclusive; None if the dataset has no boxes for it.
        box_labels: class index of each box.
        mask: file of an instance or class mask; None if there is none.
        mask_values: what the mask's pixels say: ``"instances"``: k is the k-th box, from 1; ``"classes"``: k is the
            class of index k − 1; ``"object"``: above half of the mask's largest value is the object. 0 is background
            and, but for ``"object"``, 255 void.
        size: (width, height) as the annotation has it, to be compared with the file's; None if it says nothing.
    """

    path: Path
    labels: tuple[int, ...]
    id: str
    boxes: tuple[tuple[float, float, float, float], ...] | None = None
    box_labels: tuple[int, ...] = ()
    mask: Path | None = None
    mask_values: MaskValues = "instances"
    size: tuple[int, int] | None = None
