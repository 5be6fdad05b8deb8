"""Record: one image on disk with its annotations, as every dataset of files describes it. Knows no pixels."""

import pickle
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

MaskValues = Literal["instances", "classes", "object"]
Box = tuple[float, float, float, float]


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
    boxes: tuple[Box, ...] | None = None
    box_labels: tuple[int, ...] = ()
    mask: Path | None = None
    mask_values: MaskValues = "instances"
    size: tuple[int, int] | None = None


class Records(Sequence[Record]):
    """Records in one block of bytes, each an object only while it is used.

    A million of them as objects take most of a gigabyte, and every loading process soon has its own copy of it: to look
    at an object is to count its references, which writes to the memory that the processes share.

    Args:
        records: of the images, in their order.

    Attributes:
        has_boxes: whether any of them has boxes.
        has_masks: whether any of them has a mask.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.has_boxes = self.has_masks = False
        self._bytes, self._ends = bytearray(), array("q", [0])
        for record in records:
            self.has_boxes |= record.boxes is not None
            self.has_masks |= record.mask is not None
            self._bytes += _pack(record)
            self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        return _unpack(self._bytes[self._ends[place] : self._ends[place + 1]])


def _pack(record: Record) -> bytes:
    mask = None if record.mask is None else str(record.mask)
    values = (str(record.path), record.labels, record.id, record.boxes, record.box_labels, mask)
    return pickle.dumps((*values, record.mask_values, record.size), pickle.HIGHEST_PROTOCOL)


def _unpack(packed: bytearray) -> Record:
    path, labels, name, boxes, box_labels, mask, mask_values, size = pickle.loads(packed)
    mask = None if mask is None else Path(mask)
    return Record(Path(path), labels, name, boxes, box_labels, mask, mask_values, size)
