"""Record: one image on disk with its annotations, as every dataset of files describes it. Knows no pixels."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """One image of a dataset, in the pixel geometry of its file.

    Attributes:
        path: of the image file.
        labels: class indices: one, or in a multi-label dataset all classes of the image, rising.
        id: names the image, unique in its split.
        boxes: (x0, y0, x1, y1) in pixels of the file, x1 and y1 exclusive; None if the dataset has no boxes for it.
        box_labels: class index of each box.
        mask: file of an instance or class mask; None if there is none.
    """

    path: Path
    labels: tuple[int, ...]
    id: str
    boxes: tuple[tuple[float, float, float, float], ...] | None = None
    box_labels: tuple[int, ...] = ()
    mask: Path | None = None
