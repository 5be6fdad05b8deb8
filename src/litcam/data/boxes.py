"""The one rule of which boxes are usable, whatever the format that says them, and what becomes of their image."""

import math
import re
import reprlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from litcam.data.reading import (
    BadFileError,
    LeaveOut,
    bad_file,
    by,
    check_mask_values,
    image_size,
    printable,
    read_mask,
)
from litcam.data.records import Box, Record

Size = tuple[int, int]  # (width, height)
_DECIMAL = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")  # float() reads 1_0 and ١٠ too


class BadBoxError(BadFileError):
    """A box is not usable; the message names its file, where it stands there and the trouble. Its image may be."""


def corners_as_given(x0: float, y0: float, x1: float, y1: float) -> Box:
    """The corners of a box said by its corners."""
    return x0, y0, x1, y1


def corners_of_sides(x: float, y: float, width: float, height: float) -> Box:
    """The corners of a box said by one corner and its sides."""
    return x, y, x + width, y + height


@dataclass(frozen=True)
class BoxFormat:
    """How a format says a box, in four numbers.

    Attributes:
        corners: x0, y0, x1 and y1 in pixels counted from 0, of these numbers; a ValueError says what they cannot be.
        end: what makes x1 and y1 exclusive when it is added: 1 where they are the last pixels of the box, else 0.
        text: whether the numbers are words to be read.
    """

    corners: Callable[[float, float, float, float], Box] = corners_as_given
    end: int = 0
    text: bool = True

    def read(self, path: Path, where: str, values: object, size: Size | None = None) -> Box | BadBoxError:
        """A box with exclusive ends, or what is wrong with it.

        Args:
            path: of the annotation file.
            where: which annotation it is there.
            values: the four numbers.
            size: of the image, where the annotation says it.
        """
        try:
            numbers = read_numbers(values, 4, self.text)
            if numbers is None:
                raise ValueError(f"has to be 4 numbers, not {reprlib.repr(values)}")
            x0, y0, x1, y1 = self.corners(*numbers)
            if x1 < x0 or y1 < y0 or x1 + self.end <= x0 or y1 + self.end <= y0:
                raise ValueError(f"{_shown(numbers)} has no area")
            box = (x0, y0, x1 + self.end, y1 + self.end)
            if box[2] <= 0 or box[3] <= 0 or (size is not None and (x0 >= size[0] or y0 >= size[1])):
                raise ValueError(f"{_shown(numbers)} lies outside the image{f' of {by(size)}' if size else ''}")
        except ValueError as error:
            return bad_box(path, where, f"the box {error}")
        return box


def bad_box(path: Path, where: str, trouble: str) -> BadBoxError:
    """The error for a box, or what was meant to be one.

    Args:
        path: of its file.
        where: which annotation it is there.
        trouble: what is wrong with it.
    """
    return BadBoxError(printable(f"{path}: {where}: {trouble}"))


def read_numbers(values: object, count: int, text: bool = True) -> list[float] | None:
    """Finite numbers, as many as are needed; None where they are others.

    Args:
        values: numbers, or words that say them in digits of ASCII.
        count: how many are needed.
        text: whether they are words.
    """
    if not isinstance(values, list | tuple) or len(values) != count:
        return None
    if text and not all(isinstance(value, str) and _DECIMAL.fullmatch(value) for value in values):
        return None
    if not text and not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    try:
        numbers = [float(value) for value in values]
    except OverflowError:  # of integers as JSON may have them
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def with_boxes(
    record: Record, boxes: Sequence[Box | BadBoxError], labels: Sequence[int], leave_out: LeaveOut
) -> Record | None:
    """A record with those of its boxes that are usable; None where its image has to be left out with the others.

    That is an image of which no box is left, or whose mask numbers all of its boxes.

    Args:
        record: of the image.
        boxes: each box of the image, or what is wrong with it.
        labels: class index of each.
        leave_out: takes the error of each box, and of the image, that is left out.
    """
    usable = [(box, label) for box, label in zip(boxes, labels, strict=True) if not isinstance(box, BadBoxError)]
    for box in boxes:
        if isinstance(box, BadBoxError):
            leave_out(box)
    if len(usable) < len(boxes):
        if not usable:
            leave_out(bad_file(record.path, "none of the image's boxes is usable"))
            return None
        if record.mask is not None and record.mask_values == "instances":
            leave_out(bad_file(record.path, "the image's mask numbers its boxes, of which one is not usable"))
            return None
    return replace(record, boxes=tuple(box for box, _ in usable), box_labels=tuple(label for _, label in usable))


def fitted(record: Record, size: Size, leave_out: LeaveOut) -> Record | None:
    """A record with its boxes cut off at the border of its image of (width, height); see :func:`with_boxes`.

    Raises:
        BadFileError: if the annotation is of an image of another size.
    """
    if record.size is not None and record.size != size:
        raise bad_file(record.path, f"the image is {by(size)}, but its annotation says {by(record.size)}")
    if record.boxes is None:
        return record
    return with_boxes(record, [_cut(record.path, box, size) for box in record.boxes], record.box_labels, leave_out)


def check_record(record: Record) -> tuple[Record | None, list[BadFileError]]:
    """Read the files of a record once: the record as far as it is usable, and what is wrong with it."""
    troubles: list[BadFileError] = []
    try:
        size = image_size(record.path)
        usable = fitted(record, size, troubles.append)
        if usable is not None and usable.mask is not None:
            check_mask_values(usable, read_mask(usable.mask, usable.mask_values, size))
    except BadFileError as error:
        return None, [*troubles, error]
    return usable, troubles


def counted(errors: Collection[type[BadFileError]], kind: str = "") -> str:
    """How many files and boxes some errors are of: ``2 files and 1 box``, or ``2 bad files and 1 bad box``."""
    boxes = sum(error is BadBoxError for error in errors)
    files = len(errors) - boxes
    words = [f"{files} {kind}file{'s' * (files != 1)}"] * bool(files)
    words += [f"{boxes} {kind}box{'es' * (boxes != 1)}"] * bool(boxes)
    return " and ".join(words)


def _cut(path: Path, box: Box, size: Size) -> Box | BadBoxError:
    x0, y0, x1, y1 = np.clip(box, 0, [*size, *size]).astype(np.float32).tolist()
    if not (x1 > x0 and y1 > y0):  # so that NaN is found too
        trouble = f"nothing of the box {_shown(box)} lies in the image of {by(size)} pixels"
        return BadBoxError(printable(f"{path}: {trouble}"))
    return x0, y0, x1, y1


def _shown(numbers: Sequence[float]) -> str:
    return f"({', '.join(f'{number:g}' for number in numbers)})"
