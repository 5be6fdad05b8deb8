"""Readers of annotations: exact boxes from each format, and every trouble named with its file."""

import json
from pathlib import Path
from typing import Any

import pytest

from litcam.data.annotations import Annotation, read_coco, read_csv, read_voc, read_yolo
from litcam.data.reading import BadFileError

COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "cat/a.jpg", "width": 80, "height": 60}, {"id": 8, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 40]},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 5.5, 6], "iscrowd": 0},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 80, 60], "iscrowd": 1},
    ],
    "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "cat"}],
}


def voc_object(name: str = "cat", box: tuple[object, ...] = (11, 21, 40, 60), difficult: int = 0) -> str:
    """An object of a VOC file; box is xmin, ymin, xmax, ymax, 1-based and inclusive."""
    tags = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    corners = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox></object>"


def voc_file(path: Path, *objects: str, size: tuple[int, int] | None = (80, 60)) -> Path:
    """A VOC file of an image of (width, height)."""
    stated = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation>{stated}{''.join(objects)}</annotation>")
    return path


def test_voc_pixels_become_zero_based_with_exclusive_ends(tmp_path: Path) -> None:
    path = voc_file(tmp_path / "a.xml", voc_object(), voc_object("dog", (1, 1, 2.5, 3), difficult=1))
    expected = Annotation(((10, 20, 40, 60), (0, 0, 2.5, 3)), ("cat", "dog"), (80, 60))
    assert read_voc(path) == expected
    assert read_voc(path, difficult=False) == Annotation(((10, 20, 40, 60),), ("cat",), (80, 60))
    assert read_voc(voc_file(tmp_path / "b.xml", size=None)) == Annotation()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (voc_object(box=(5, 5, 5, 9)), r"the box \(5, 5, 5, 9\) of cat has no area"),
        (voc_object(box=(9, 5, 5, 9)), "of cat has no area"),
        (voc_object(box=(81, 5, 90, 9)), r"the box \(80, 4, 90, 9\) lies outside the image of 80 by 60"),
        (voc_object(box=(-9, 5, 0, 9)), "lies outside the image"),
        (voc_object(box=("left", 5, 90, 9)), r"the box of cat has to be 4 numbers, not \['left', '5', '90', '9'\]"),
        (voc_object(box=("nan", 5, 90, 9)), "the box of cat has to be 4 numbers"),
        ("<object><name>cat</name></object>", "the box of cat has to be 4 numbers"),
        (voc_object(""), "an object has no name"),
        ("<object>", "the file is not valid XML"),
    ],
)
def test_troubles_of_a_voc_file_are_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(BadFileError, match=f"a.xml: .*{message}"):
        read_voc(voc_file(tmp_path / "a.xml", content))


def test_a_voc_file_of_size_zero_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"a.xml: it says that the image is 0 by 0"):
        read_voc(voc_file(tmp_path / "a.xml", voc_object(), size=(0, 0)))


def test_coco_boxes_are_found_by_file_name_without_crowds(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(COCO))
    assert read_coco(tmp_path / "a.json") == {
        "cat/a.jpg": Annotation(((10, 20, 40, 60), (0, 0, 5.5, 6)), ("cat", "dog"), (80, 60)),
        "b.jpg": Annotation(),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}]},
            "the image 9, which images does not",
        ),
        ({"annotations": [{"image_id": 7, "category_id": 9, "bbox": [0, 0, 1, 1]}]}, "the unknown category 9"),
        ({"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}]}, "a bbox has to be 4 numbers"),
        ({"annotations": [{"image_id": 7, "category_id": 1, "bbox": [0, 0, 0, 1]}]}, r"\(0, 0, 0, 1\) has no area"),
        (
            {"annotations": [{"image_id": 7, "category_id": 1, "bbox": [90, 0, 9, 1]}]},
            "lies outside the image of 80 by",
        ),
        ({"annotations": [{"image_id": 7, "category_id": 1}]}, "the file is not a COCO annotation .*bbox"),
        ({"images": None}, "the file is not a COCO annotation"),
    ],
)
def test_troubles_of_a_coco_file_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps({**COCO, **changes}))
    with pytest.raises(BadFileError, match=f"a.json: .*{message}"):
        read_coco(tmp_path / "a.json")


@pytest.mark.parametrize(("content", "message"), [("{", "not valid JSON"), ("[]", "not a COCO annotation")])
def test_other_json_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BadFileError, match=f"a.json: the file is {message}"):
        read_coco(tmp_path / "a.json")


def test_yolo_shares_become_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n\n0 0.1 0.1 0.2 0.2\n")
    objects = read_yolo(tmp_path / "a.txt", (80, 60), ["cat", "dog"])
    assert objects.names == ("dog", "cat")
    assert objects.boxes[0] == (30, 15, 50, 45)
    assert objects.boxes[1] == pytest.approx((0, 0, 16, 12))
    (tmp_path / "empty.txt").write_text("")
    assert read_yolo(tmp_path / "empty.txt", (80, 60), ["cat"]) == Annotation()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 .5 .5 .1 .1", "line 1 has the class '2'; there are 0 to 1"),
        ("cat .5 .5 .1 .1", "line 1 has the class 'cat'"),
        ("0 .5 .5 .1", "line 1 has to be 4 numbers"),
        ("0 .5 .5 0 .1", "has no area"),
        ("0 1.5 .5 .1 .1", "lies outside the image of 80 by 60"),
    ],
)
def test_troubles_of_a_yolo_file_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(line)
    with pytest.raises(BadFileError, match=f"a.txt: .*{message}"):
        read_yolo(tmp_path / "a.txt", (80, 60), ["cat", "dog"])


def test_csv_rows_are_gathered_by_path(tmp_path: Path) -> None:
    rows = ["label,path,x0,y0,x1,y1,by", "cat,a.jpg,0,1,2,3,me", "dog,b.jpg,4,4,8,8,me", "dog,a.jpg,5,5,6,6.5,me"]
    (tmp_path / "a.csv").write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    assert read_csv(tmp_path / "a.csv") == {
        "a.jpg": Annotation(((0, 1, 2, 3), (5, 5, 6, 6.5)), ("cat", "dog")),
        "b.jpg": Annotation(((4, 4, 8, 8),), ("dog",)),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the columns path, x0, y0, x1, y1, label are missing"),
        ("path,x0,y0,x1,label\n", "the columns y1 are missing; needed are path, x0, y0, x1, y1, label"),
        ("path,x0,y0,x1,y1,label\na.jpg,0,0,1\n", "line 2 has no path or no label"),
        ("path,x0,y0,x1,y1,label\na.jpg,0,0,one,1,cat\n", "line 2 has to be 4 numbers"),
        ("path,x0,y0,x1,y1,label\na.jpg,3,0,3,1,cat\n", r"the box \(3, 0, 3, 1\) has no area"),
        ("path,x0,y0,x1,y1,label\na.jpg,-3,0,0,1,cat\n", "lies outside the image"),
    ],
)
def test_troubles_of_a_csv_file_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(BadFileError, match=f"a.csv: .*{message}"):
        read_csv(tmp_path / "a.csv")


@pytest.mark.parametrize("read", [read_voc, read_coco, read_csv, lambda path: read_yolo(path, (8, 8), ["a"])])
def test_missing_files_folders_and_bytes_that_are_no_text_are_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(BadFileError, match="none: the file does not exist"):
        read(tmp_path / "none")
    with pytest.raises(BadFileError, match="the file cannot be opened"):
        read(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(BadFileError, match=r"bytes: the file is not (UTF-8 text|valid XML)"):
        read(tmp_path / "bytes")
