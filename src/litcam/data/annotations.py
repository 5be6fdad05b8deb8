"""Readers of box annotations: VOC XML, COCO JSON, YOLO text and CSV. Each error names the file. Knows no image."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from litcam.data.boxes import BadBoxError, BoxFormat, Size, bad_box, corners_of_sides, read_numbers
from litcam.data.parsing import read_json, read_lines, read_rows, read_xml
from litcam.data.reading import BadFileError, LeaveOut, bad_file, refuse
from litcam.data.records import Box


@dataclass(frozen=True)
class Annotation:
    """The objects of one image.

    Attributes:
        boxes: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, or what is wrong with the box.
        names: class name of each box; "" where it cannot be told, which no usable box has.
        size: (width, height) of the image, where the annotation says so.
    """

    boxes: tuple[Box | BadBoxError, ...] = ()
    names: tuple[str, ...] = ()
    size: Size | None = None


Objects = list[tuple[Box | BadBoxError, str]]  # of one image: each box with the name of its class
Annotations = dict[str, Annotation | BadFileError]  # by the names of images, some of whose entries are not usable

_CSV = BoxFormat()
_COCO = BoxFormat(corners_of_sides, text=False)
_COLUMNS = ("path", "x0", "y0", "x1", "y1", "label")
_YOLO_LINE = re.compile(r"[0-9]+(\s+[0-9.,eE+-]+){4,}")
_ROUNDING = 1e-3  # by which YOLO's shares may go beyond 0 and 1


def read_voc(path: Path, difficult: bool = True, first_pixel: int = 1) -> Annotation:
    """The objects of a VOC XML file; its inclusive pixels become 0-based with exclusive ends.

    Args:
        path: of the file.
        difficult: whether objects marked as difficult are wanted.
        first_pixel: number of the first pixel: 1 in VOC, 0 in ImageNet.

    Raises:
        BadFileError: if the file is missing or no such XML, or the size that it says is none.
    """
    root = read_xml(path)
    if root.tag != "annotation":
        raise bad_file(path, f"the file is no VOC annotation: its root is <{shortened(root.tag)[1:-1]}>")
    node = root.find("size")
    size = None if node is None else _size(path, [node.findtext("width"), node.findtext("height")], text=True)
    form = BoxFormat(
        lambda x0, y0, x1, y1: (x0 - first_pixel, y0 - first_pixel, x1 - first_pixel, y1 - first_pixel), end=1
    )
    objects: Objects = []
    for number, node in enumerate(root.iter("object"), start=1):
        name, flag = (node.findtext("name") or "").strip(), (node.findtext("difficult") or "0").strip()
        if flag == "1" and not difficult:
            continue
        corners = [node.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        where = f"object {number}"
        box = form.read(path, f"{where}, {name}", corners, size) if name else bad_box(path, where, "it has no name")
        objects.append((box, name))
    return _annotation(objects, size)


def read_coco(path: Path, leave_out: LeaveOut = refuse) -> Annotations:
    """The objects of each image of a COCO JSON file, by its ``file_name``; crowd regions are left out.

    Args:
        path: of the file.
        leave_out: takes the error of each entry that belongs to no image; by default it raises them.

    Raises:
        BadFileError: if the file is missing or no such JSON.
    """
    data = read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise bad_file(path, f"the file is not a COCO annotation: it has no list of {key}")
    categories = _coco_categories(path, data["categories"])
    images, found = _coco_images(path, data["images"], leave_out)
    objects: dict[Any, Objects] = {key: [] for key in images}
    for number, entry in enumerate(data["annotations"]):
        image = _key(entry, "image_id")
        if image not in images:
            trouble = f"it is of the image {_entry(entry, 'image_id')}, which images does not list"
            leave_out(bad_box(path, _which(entry, number), trouble))
        elif entry.get("iscrowd") != 1:
            objects[image].append(_coco_object(path, number, entry, images[image], categories))
    for key, (name, size) in images.items():
        found.setdefault(name, _annotation(objects[key], size))
    return found


def read_yolo(path: Path, size: Size, names: Sequence[str]) -> Annotation:
    """The objects of a YOLO text file: lines of class, centre x, centre y, width and height, as shares of the sides.

    Args:
        path: of the file; an empty one has no objects.
        size: (width, height) of the image.
        names: class names by number.

    Raises:
        BadFileError: if the file is missing or no text.
    """

    def corners(x: float, y: float, width: float, height: float) -> Box:
        if not all(-_ROUNDING <= share <= 1 + _ROUNDING for share in (x, y, width, height)):
            shown = ", ".join(f"{share:g}" for share in (x, y, width, height))
            raise ValueError(f"({shown}) has to be in shares of the image's sides, 0 to 1")
        left, top = (x - width / 2) * size[0], (y - height / 2) * size[1]
        return left, top, left + width * size[0], top + height * size[1]

    form, numbers, objects = BoxFormat(corners), {str(number): name for number, name in enumerate(names)}, Objects()
    for number, line in read_lines(path):
        label, *shares = line.split()
        name = numbers.get(label.lstrip("0") or "0", "")
        where = f"line {number}"
        trouble = f"it has the class {shortened(label)}; there are 0 to {len(names) - 1}"
        objects.append((form.read(path, where, shares, size) if name else bad_box(path, where, trouble), name))
    return _annotation(objects)


def is_yolo(path: Path) -> bool:
    """Whether a text file has a line of YOLO's form, as a list of files or a README has not."""
    try:
        return any(_YOLO_LINE.fullmatch(line) for _, line in read_lines(path))
    except BadFileError:
        return False


def read_csv(path: Path, leave_out: LeaveOut = refuse) -> Annotations:
    """The objects of each image of a CSV file with the columns path, x0, y0, x1, y1 and label; x1 and y1 are exclusive.

    Args:
        path: of the file.
        leave_out: takes the error of each row that belongs to no image; by default it raises them.

    Raises:
        BadFileError: if the file is missing or no CSV, or a column is.
    """
    found: dict[str, Objects] = {}
    for line, (image, *corners, name), whole in read_rows(path, _COLUMNS):
        where = f"line {line}" + f", of {image}" * bool(image)
        if image and name and whole:
            box: Box | BadBoxError = _CSV.read(path, where, corners)
        else:
            missing = "it has no path" if not image else "it has no label"
            box = bad_box(path, where, missing if whole else "it has not as many values as there are columns")
        if isinstance(box, BadBoxError) and not image:
            leave_out(box)
        else:
            found.setdefault(image, []).append((box, name))
    return {image: _annotation(objects) for image, objects in found.items()}


def _annotation(objects: Objects, size: Size | None = None) -> Annotation:
    return Annotation(tuple(box for box, _ in objects), tuple(name for _, name in objects), size)


def _coco_categories(path: Path, entries: list[Any]) -> dict[Any, str]:
    """The name of each category by its id."""
    categories: dict[Any, str] = {}
    for number, entry in enumerate(entries):
        key, name = _key(entry, "id"), _name(entry, "name")
        if key is None or not name or key in categories:
            raise bad_file(path, f"categories[{number}] has to have a name, and an id that no other category has")
        categories[key] = name
    return categories


def _coco_images(
    path: Path, entries: list[Any], leave_out: LeaveOut
) -> tuple[dict[Any, tuple[str, Size | None]], Annotations]:
    """The name and the size of each image by its id; and what is wrong with images, by name."""
    images: dict[Any, tuple[str, Size | None]] = {}
    troubles: Annotations = {}
    names: dict[str, Any] = {}
    for number, entry in enumerate(entries):
        key, name = _key(entry, "id"), _name(entry, "file_name")
        if key is None or not name:
            leave_out(bad_file(path, f"images[{number}] has no id or no file_name"))
            continue
        try:
            sides = [entry.get("width"), entry.get("height")]
            size = _size(path, sides, False, f"the image {name}") if entry.keys() & {"width", "height"} else None
        except BadFileError as error:
            size, troubles[name] = None, error.with_traceback(None)  # whose frames hold the whole file
        other = images.setdefault(key, (name, size))
        if other != (name, size):
            trouble = f"the image {name} has the id {shortened(key)}, as {other[0]} has"
            troubles[name] = troubles[other[0]] = bad_file(path, trouble)
        elif names.setdefault(name, key) != key:
            troubles[name] = bad_file(path, f"the image {name} stands there for the second time, with another id")
    return images, troubles


def _coco_object(
    path: Path, number: int, entry: Mapping[str, Any], image: tuple[str, Size | None], categories: Mapping[Any, str]
) -> tuple[Box | BadBoxError, str]:
    """The box of an annotation and the name of its class."""
    name, size = image
    label = categories.get(_key(entry, "category_id"), "")
    where = f"{_which(entry, number)} of {name}"
    if not label:
        return bad_box(path, where, f"it is of the unknown category {_entry(entry, 'category_id')}"), ""
    if entry.get("iscrowd") not in (0, None):
        return bad_box(path, where, f"its iscrowd is {_entry(entry, 'iscrowd')}, not 0 or 1"), label
    return _COCO.read(path, where, entry.get("bbox"), size), label


def _which(entry: Any, number: int) -> str:
    has_id = isinstance(entry, dict) and "id" in entry
    return f"annotation {shortened(entry['id'])}" if has_id else f"annotations[{number}]"


def _entry(entry: Any, key: str) -> str:
    return shortened(entry.get(key)) if isinstance(entry, dict) else "None"


def _key(entry: Any, key: str) -> int | float | str | None:
    """An id, or None where there is none."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, int | float | str) else None


def _name(entry: Any, key: str) -> str:
    """A name that can be written, or an empty one where there is none; the number that a class may be called by too."""
    value = entry.get(key) if isinstance(entry, dict) else None
    name = str(value).strip() if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return "" if any(character < " " or "\ud800" <= character <= "\udfff" for character in name) else name


def _size(path: Path, sides: list[Any], text: bool, what: str = "the image") -> Size:
    numbers = read_numbers(sides, 2, text)
    if numbers is None or min(numbers) < 1 or any(number % 1 for number in numbers):
        width, height = (str(side).strip() if text else shortened(side) for side in sides)
        raise bad_file(path, f"it says that {what} is {width} by {height}")
    return int(numbers[0]), int(numbers[1])
