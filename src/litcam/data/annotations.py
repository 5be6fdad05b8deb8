"""Readers of box annotations: VOC XML, COCO JSON, YOLO text and CSV. Each error names the file. Knows no image."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from litcam.data.finding import regular, trouble_with
from litcam.data.reading import bad_file, shown_box
from litcam.data.records import Box


@dataclass(frozen=True)
class Annotation:
    """The objects of one image.

    Attributes:
        boxes: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive.
        names: class name of each box.
        size: (width, height) of the image, where the annotation says so.
    """

    boxes: tuple[Box, ...] = ()
    names: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


def read_voc(path: Path, difficult: bool = True) -> Annotation:
    """The objects of a VOC XML file; its 1-based inclusive pixels become 0-based with exclusive ends.

    Args:
        path: of the file.
        difficult: whether objects marked as difficult are wanted.

    Raises:
        BadFileError: if the file is missing or no such XML, its size is 0 by 0, or a box has no area or lies outside.
    """
    try:
        tree = ElementTree.fromstring(_read_bytes(path))
    except ElementTree.ParseError as error:
        raise bad_file(path, f"the file is not valid XML ({error})") from None
    size = _voc_size(path, tree.find("size"))
    boxes, names = [], []
    for node in tree.iter("object"):
        name, flag = (node.findtext("name") or "").strip(), (node.findtext("difficult") or "0").strip()
        if not name:
            raise bad_file(path, "an object has no name")
        corners = [node.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = _numbers(path, f"the box of {name}", corners)
        if x1 <= x0 or y1 <= y0:
            raise bad_file(path, f"the box {shown_box((x0, y0, x1, y1))} of {name} has no area")
        if difficult or flag != "1":
            boxes.append((x0 - 1, y0 - 1, x1, y1))
            names.append(name)
    _check_boxes(path, boxes, size)
    return Annotation(tuple(boxes), tuple(names), size)


def read_coco(path: Path) -> dict[str, Annotation]:
    """The objects of each image of a COCO JSON file, by its ``file_name``; crowd regions are left out.

    Raises:
        BadFileError: if the file is missing or no such JSON, an annotation is of an unknown image or category, or a box
            has no area or lies outside.
    """
    try:
        data = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise bad_file(path, f"the file is not valid JSON ({error})") from None
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in data["categories"]}
        images = {entry["id"]: entry for entry in data["images"]}
        objects: dict[Any, list[tuple[Box, str]]] = {key: [] for key in images}
        for entry in data["annotations"]:
            if entry["image_id"] not in images:
                raise bad_file(path, f"an annotation is of the image {entry['image_id']!r}, which images does not list")
            if entry["category_id"] not in categories:
                raise bad_file(path, f"an annotation is of the unknown category {entry['category_id']!r}")
            if entry.get("iscrowd"):
                continue
            x, y, width, height = _numbers(path, "a bbox", entry["bbox"])
            objects[entry["image_id"]].append(((x, y, x + width, y + height), categories[entry["category_id"]]))
        found = {}
        for key, entry in images.items():
            size = (int(entry["width"]), int(entry["height"])) if {"width", "height"} <= entry.keys() else None
            boxes = tuple(box for box, _ in objects[key])
            _check_boxes(path, boxes, size)
            found[str(entry["file_name"])] = Annotation(boxes, tuple(name for _, name in objects[key]), size)
    except (KeyError, TypeError, AttributeError) as error:
        raise bad_file(path, f"the file is not a COCO annotation ({type(error).__name__}: {error})") from None
    return found


def read_yolo(path: Path, size: tuple[int, int], names: Sequence[str]) -> Annotation:
    """The objects of a YOLO text file: lines of class, centre x, centre y, width and height, as shares of the sides.

    Args:
        path: of the file; an empty one has no objects.
        size: (width, height) of the image.
        names: class names by number.

    Raises:
        BadFileError: if the file is missing, a line has another form, or a box has no area or lies outside.
    """
    boxes, found = [], []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        label, *shares = line.split()
        if not label.isdecimal() or int(label) >= len(names):
            raise bad_file(path, f"line {number} has the class {label!r}; there are 0 to {len(names) - 1}")
        x, y, width, height = _numbers(path, f"line {number}", shares)
        left, top = (x - width / 2) * size[0], (y - height / 2) * size[1]
        boxes.append((left, top, left + width * size[0], top + height * size[1]))
        found.append(names[int(label)])
    _check_boxes(path, boxes, size)
    return Annotation(tuple(boxes), tuple(found))


def read_csv(path: Path) -> dict[str, Annotation]:
    """The objects of each image of a CSV file with the columns path, x0, y0, x1, y1 and label; x1 and y1 are exclusive.

    Raises:
        BadFileError: if the file is missing, a column is, or a box is not of numbers, has no area or lies outside.
    """
    columns = ("path", "x0", "y0", "x1", "y1", "label")
    rows = csv.DictReader(_read_text(path).splitlines())
    missing = [column for column in columns if column not in (rows.fieldnames or ())]
    if missing:
        raise bad_file(path, f"the columns {', '.join(missing)} are missing; needed are {', '.join(columns)}")
    found: dict[str, tuple[list[Box], list[str]]] = {}
    for row in rows:
        where = f"line {rows.line_num}"
        if not row["path"] or not row["label"]:
            raise bad_file(path, f"{where} has no path or no label")
        box = _numbers(path, where, [row[key] for key in columns[1:5]])
        _check_boxes(path, [box], None)
        boxes, names = found.setdefault(row["path"], ([], []))
        boxes.append(box)
        names.append(row["label"])
    return {name: Annotation(tuple(boxes), tuple(names)) for name, (boxes, names) in found.items()}


def _voc_size(path: Path, node: ElementTree.Element | None) -> tuple[int, int] | None:
    if node is None:
        return None
    width, height = _of_numbers(path, "its size", [node.findtext("width"), node.findtext("height")], 2)
    if width < 1 or height < 1:
        raise bad_file(path, f"it says that the image is {width:g} by {height:g}")
    return int(width), int(height)


def _check_boxes(path: Path, boxes: Iterable[Box], size: tuple[int, int] | None) -> None:
    for x0, y0, x1, y1 in boxes:
        shown = shown_box((x0, y0, x1, y1))
        if not (x1 > x0 and y1 > y0):
            raise bad_file(path, f"the box {shown} has no area")
        if x1 <= 0 or y1 <= 0 or (size is not None and (x0 >= size[0] or y0 >= size[1])):
            beyond = f" of {size[0]} by {size[1]}" if size else ""
            raise bad_file(path, f"the box {shown} lies outside the image{beyond}")


def _numbers(path: Path, what: str, values: Any) -> Box:
    x0, y0, x1, y1 = _of_numbers(path, what, values, 4)
    return x0, y0, x1, y1


def _of_numbers(path: Path, what: str, values: Any, count: int) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise bad_file(path, f"{what} has to be {count} numbers, not {values!r}")
    return numbers


def _read_bytes(path: Path) -> bytes:
    try:
        return regular(path).read_bytes()
    except FileNotFoundError:
        raise bad_file(path, "the file does not exist") from None
    except OSError as error:
        raise bad_file(path, trouble_with(path) or f"the file cannot be opened ({error.strerror})") from None


def _read_text(path: Path) -> str:
    try:
        return _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise bad_file(path, "the file is not UTF-8 text") from None
