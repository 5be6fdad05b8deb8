"""Readers of annotations: exact boxes from each format, and every trouble named with its file."""

import json
from pathlib import Path
from typing import Any

import pytest

from litcam.data.annotations import Annotation, Annotations, is_yolo, read_coco, read_csv, read_voc, read_yolo
from litcam.data.boxes import BadBoxError
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


def troubles(objects: Annotation | BadFileError) -> list[str]:
    """What is wrong with the boxes of an image, without the file's name."""
    assert isinstance(objects, Annotation)
    return [str(box).split(": ", 1)[1] for box in objects.boxes if isinstance(box, BadBoxError)]


def coco_file(path: Path, raw: str | None = None, **changes: Any) -> Path:
    """COCO with changed lists, or with the text in the place of its first box."""
    text = json.dumps({**COCO, **changes})
    path.write_text(text if raw is None else text.replace("[10, 20, 30, 40]", raw))
    return path


def read_changed(tmp_path: Path, **changes: Any) -> Annotations:
    """The images of COCO whose one annotation has changed values."""
    entry = {"id": 5, "image_id": 7, "category_id": 1, "bbox": [0, 0, 1, 1], **changes}
    return read_coco(coco_file(tmp_path / "a.json", annotations=[entry]))


def test_voc_pixels_become_zero_based_with_exclusive_ends(tmp_path: Path) -> None:
    path = voc_file(tmp_path / "a.xml", voc_object(), voc_object("dog", (1, 1, 2.5, 3), difficult=1))
    expected = Annotation(((10, 20, 40, 60), (0, 0, 2.5, 3)), ("cat", "dog"), (80, 60))
    assert read_voc(path) == expected
    assert read_voc(path, difficult=False) == Annotation(((10, 20, 40, 60),), ("cat",), (80, 60))
    assert read_voc(voc_file(tmp_path / "b.xml", size=None)) == Annotation()


def test_a_voc_box_of_one_pixel_is_a_box(tmp_path: Path) -> None:
    """Its ends are the pixels themselves: xmin == xmax is one column, and xmax == width the last one."""
    path = voc_file(tmp_path / "a.xml", voc_object(box=(5, 6, 5, 6)), voc_object(box=(80, 60, 80, 60)))
    assert read_voc(path).boxes == ((4, 5, 5, 6), (79, 59, 80, 60))
    assert read_voc(path, first_pixel=0).boxes[0] == (5, 6, 6, 7)
    assert troubles(read_voc(path, first_pixel=0)) == [
        "object 2, cat: the box (80, 60, 80, 60) lies outside the image of 80 by 60"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (voc_object(box=(9, 5, 8, 9)), "object 1, cat: the box (9, 5, 8, 9) has no area"),
        (voc_object(box=(5.5, 5, 5, 9)), "object 1, cat: the box (5.5, 5, 5, 9) has no area"),
        (voc_object(box=(81, 5, 90, 9)), "the box (81, 5, 90, 9) lies outside the image of 80 by 60"),
        (voc_object(box=(-9, 5, 0, 9)), "the box (-9, 5, 0, 9) lies outside the image of 80 by 60"),
        (voc_object(box=("left", 5, 90, 9)), "the box has to be 4 numbers, not ['left', '5', '90', '9']"),
        (voc_object(box=("nan", 5, 90, 9)), "the box has to be 4 numbers"),
        (voc_object(box=("1_0", 5, 90, 9)), "the box has to be 4 numbers"),
        ("<object><name>cat</name></object>", "the box has to be 4 numbers, not [None, None, None, None]"),
        (voc_object(""), "object 1: it has no name"),
    ],
)
def test_a_bad_voc_box_is_named_and_the_others_stay(tmp_path: Path, content: str, message: str) -> None:
    objects = read_voc(voc_file(tmp_path / "a.xml", content, voc_object("dog")))
    (trouble,) = troubles(objects)
    assert message in trouble
    assert objects.boxes[1:] == ((10, 20, 40, 60),)
    assert objects.names[1:] == ("dog",)


@pytest.mark.parametrize("size", [(0, 0), (80, -1), ("None", 60), (80.5, 60), ("nan", 60), ("1e999", 60)])
def test_a_voc_file_of_no_size_is_named(tmp_path: Path, size: Any) -> None:
    with pytest.raises(BadFileError, match=rf"a.xml: it says that the image is {size[0]} by {size[1]}"):
        read_voc(voc_file(tmp_path / "a.xml", voc_object(), size=size))


@pytest.mark.parametrize("root", ["html", "annotations", "{u}annotation"])
def test_other_xml_is_no_image_without_objects(tmp_path: Path, root: str) -> None:
    tag = 'annotation xmlns="u"' if root.startswith("{") else root
    (tmp_path / "a.xml").write_text(f"<{tag}></{tag.split()[0]}>")
    with pytest.raises(BadFileError, match=rf"a.xml: the file is no VOC annotation: its root is <{root}>"):
        read_voc(tmp_path / "a.xml")


def test_coco_boxes_are_found_by_file_name_without_crowds(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(COCO))
    assert read_coco(tmp_path / "a.json") == {
        "cat/a.jpg": Annotation(((10, 20, 40, 60), (0, 0, 5.5, 6)), ("cat", "dog"), (80, 60)),
        "b.jpg": Annotation(),
    }


@pytest.mark.parametrize(
    ("bbox", "message"),
    [
        ([0, 0, 0, 1], "(0, 0, 0, 1) has no area"),
        ([9, 9, -2, 3], "(9, 9, -2, 3) has no area"),
        ([90, 0, 9, 1], "(90, 0, 9, 1) lies outside the image of 80 by 60"),
        ([-9, -9, 9, 9], "(-9, -9, 9, 9) lies outside the image of 80 by 60"),
        ([float("nan"), 0, 9, 1], "has to be 4 numbers, not [nan, 0, 9, 1]"),
        ([0, 0, float("inf"), 1], "has to be 4 numbers, not [0, 0, inf, 1]"),
        ([10**30, 0, 10**30, 1], "(1e+30, 0, 1e+30, 1) lies outside the image of 80 by 60"),
        ([0, 0, None, None], "has to be 4 numbers, not [0, 0, None, None]"),
        (None, "has to be 4 numbers, not None"),
        ([0, 0, 1], "has to be 4 numbers, not [0, 0, 1]"),
        ([0, 0, 1, 1, 1], "has to be 4 numbers, not [0, 0, 1, 1, 1]"),
        ([True, 0, 1, 1], "has to be 4 numbers, not [True, 0, 1, 1]"),
        (["0", "0", "1", "1"], "has to be 4 numbers, not ['0', '0', '1', '1']"),
        ({"x": 1}, "has to be 4 numbers, not {'x': 1}"),
    ],
)
def test_a_bad_coco_box_is_named_by_image_and_annotation(tmp_path: Path, bbox: Any, message: str) -> None:
    assert troubles(read_changed(tmp_path, bbox=bbox)["cat/a.jpg"]) == [f"annotation 5 of cat/a.jpg: the box {message}"]


def test_a_number_too_large_for_a_box_is_named(tmp_path: Path) -> None:
    (trouble,) = troubles(read_changed(tmp_path, bbox=[10**400, 0, 9, 1])["cat/a.jpg"])
    assert trouble.startswith("annotation 5 of cat/a.jpg: the box has to be 4 numbers, not [1000")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 9}, "it is of the unknown category 9"),
        ({"category_id": None}, "it is of the unknown category None"),
        ({"category_id": [1]}, "it is of the unknown category [1]"),
        ({"iscrowd": "0"}, "its iscrowd is '0', not 0 or 1"),
    ],
)
def test_an_annotation_that_says_too_little_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert troubles(read_changed(tmp_path, **changes)["cat/a.jpg"]) == [f"annotation 5 of cat/a.jpg: {message}"]


@pytest.mark.parametrize("image", [9, None, "7", [7], {}])
def test_an_annotation_of_no_image_is_named_or_left_out(tmp_path: Path, image: Any) -> None:
    with pytest.raises(BadBoxError, match=r"a.json: annotation 5: it is of the image .*, which images does not list"):
        read_changed(tmp_path, image_id=image)
    left_out: list[BadFileError] = []
    assert read_coco(tmp_path / "a.json", left_out.append)["cat/a.jpg"] == Annotation(size=(80, 60))
    assert len(left_out) == 1


@pytest.mark.parametrize(
    ("images", "named"),
    [
        ([{"id": 7, "file_name": "a.jpg", "width": None, "height": 60}], "it says that the image a.jpg is None by 60"),
        ([{"id": 7, "file_name": "a.jpg", "width": 80}], "it says that the image a.jpg is 80 by None"),
        ([{"id": 7, "file_name": "a.jpg", "width": "80", "height": 60}], "it says that the image a.jpg is '80' by 60"),
        ([{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "c.jpg"}], "the image c.jpg has the id 7, as a.jpg"),
        ([{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "a.jpg"}], "a.jpg stands there for the second time"),
    ],
)
def test_a_bad_image_of_coco_takes_no_other_along(tmp_path: Path, images: list[dict[str, Any]], named: str) -> None:
    found = read_coco(coco_file(tmp_path / "a.json", images=[*images, {"id": 8, "file_name": "b.jpg"}]))
    assert named in str(found["a.jpg"])
    assert found["b.jpg"] == Annotation()


@pytest.mark.parametrize("entry", [None, {"id": 9}, {"file_name": "a.jpg"}, {"id": 9, "file_name": "\ud800.jpg"}])
def test_an_image_of_coco_without_name_is_named_or_left_out(tmp_path: Path, entry: Any) -> None:
    path = coco_file(tmp_path / "a.json", images=[*COCO["images"], entry])
    with pytest.raises(BadFileError, match=r"a.json: images\[2\] has no id or no file_name"):
        read_coco(path)
    left_out: list[BadFileError] = []
    assert set(read_coco(path, left_out.append)) == {"cat/a.jpg", "b.jpg"}
    assert len(left_out) == 1


def test_shapes_of_crowds_and_masks_do_no_harm(tmp_path: Path) -> None:
    shape = {"size": [60, 80], "counts": "abc"}
    assert read_changed(tmp_path, segmentation=shape, iscrowd=1, bbox=None)["cat/a.jpg"] == Annotation(size=(80, 60))
    assert read_changed(tmp_path, segmentation=shape)["cat/a.jpg"] == Annotation(((0, 0, 1, 1),), ("dog",), (80, 60))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "it has no list of images"),
        ({"annotations": {}}, "it has no list of annotations"),
        ({"categories": "cat"}, "it has no list of categories"),
        ({"categories": [{"id": 1, "name": None}]}, r"categories\[0\] has to have a name"),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
            r"categories\[1\] has to have .* an id that no",
        ),
    ],
)
def test_what_is_not_coco_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadFileError, match=f"a.json: .*{message}"):
        read_coco(coco_file(tmp_path / "a.json", **changes))


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
        ("2 .5 .5 .1 .1", "it has the class '2'; there are 0 to 1"),
        ("-1 .5 .5 .1 .1", "it has the class '-1'"),
        ("1.0 .5 .5 .1 .1", "it has the class '1.0'"),
        ("\u0661 .5 .5 .1 .1", "it has the class '\u0661'"),
        ("cat .5 .5 .1 .1", "it has the class 'cat'"),
        ("# a comment", "it has the class '#'"),
        ("9" * 5000 + " .5 .5 .1 .1", "it has the class '9999"),
        ("0 .5 .5 .1", "the box has to be 4 numbers, not ['.5', '.5', '.1']"),
        ("0 .1 .1 .2 .2 .3 .1", "the box has to be 4 numbers"),
        ("0 0,5 0,5 0,1 0,1", "the box has to be 4 numbers, not ['0,5', '0,5', '0,1', '0,1']"),
        ("0 nan .5 .1 .1", "the box has to be 4 numbers"),
        ("0 .5 .5 0 .1", "the box (0.5, 0.5, 0, 0.1) has no area"),
        ("0 .5 .5 -.1 .1", "has to be in shares of the image's sides, 0 to 1"),
        ("0 40 30 8 6", "the box (40, 30, 8, 6) has to be in shares of the image's sides, 0 to 1"),
        ("0 1.5 .5 .1 .1", "has to be in shares of the image's sides, 0 to 1"),
    ],
)
def test_a_bad_yolo_line_is_named_and_the_others_stay(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(f"\ufeff{line}\r\n  \r\n\t1 .5 .5 .25 .5 \r\n", encoding="utf-8")
    objects = read_yolo(tmp_path / "a.txt", (80, 60), ["cat", "dog"])
    (trouble,) = troubles(objects)
    assert trouble.startswith(f"line 1: {message}" if message.startswith("it") else "line 1: the box")
    assert message in trouble
    assert (objects.boxes[1:], objects.names[1:]) == (((30, 15, 50, 45),), ("dog",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0 .5 .5 .1 .1", True),
        ("# boxes\n17 0.5 0.5 0.1 0,1 .5 .5\n", True),
        ("1 image in 3 has a cat in it", False),
        ("images/1.jpg\nimages/2.jpg\n", False),
        ("", False),
    ],
)
def test_a_readme_is_no_label(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert is_yolo(tmp_path / "a.txt") is expected
    (tmp_path / "a.txt").write_bytes(b"\xff\x00")
    assert not is_yolo(tmp_path / "a.txt")


def test_csv_rows_are_gathered_by_path(tmp_path: Path) -> None:
    rows = ["label,path,x0,y0,x1,y1,by", "cat,a.jpg,0,1,2,3,me", "dog,b.jpg,4,4,8,8,me", "dog,a.jpg,5,5,6,6.5,me"]
    (tmp_path / "a.csv").write_text("\ufeff" + "\r\n".join(rows), encoding="utf-8")
    assert read_csv(tmp_path / "a.csv") == {
        "a.jpg": Annotation(((0, 1, 2, 3), (5, 5, 6, 6.5)), ("cat", "dog")),
        "b.jpg": Annotation(((4, 4, 8, 8),), ("dog",)),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg,3,0,3,1,cat", "the box (3, 0, 3, 1) has no area"),
        ("a.jpg,5,0,3,1,cat", "the box (5, 0, 3, 1) has no area"),
        ("a.jpg,-3,0,0,1,cat", "the box (-3, 0, 0, 1) lies outside the image"),
        ("a.jpg,0,0,one,1,cat", "the box has to be 4 numbers, not ['0', '0', 'one', '1']"),
        ("a.jpg,nan,0,1,1,cat", "the box has to be 4 numbers"),
        ("a.jpg,0x1,0,1,1,cat", "the box has to be 4 numbers"),
        ('a.jpg,"0,5",0,1,1,cat', "the box has to be 4 numbers, not ['0,5', '0', '1', '1']"),
        ("a.jpg,0,5,0,1,1,cat", "it has not as many values as there are columns"),
        ("a.jpg,0,0,1", "it has not as many values as there are columns"),
        ("a.jpg,0,0,1,1,", "it has no label"),
    ],
)
def test_a_bad_csv_row_is_named_and_the_others_stay(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(
        f"\n path, x0,y0,x1,y1,label\n\n{row}\n,,,,,\na.jpg, 4, 4, 8, 8, dog \nb.jpg,0,0,1,1,cat\n"
    )
    found = read_csv(tmp_path / "a.csv")
    (trouble,) = troubles(found["a.jpg"])
    assert trouble == f"line 4, of a.jpg: {message}" or (
        trouble.startswith("line 4, of a.jpg: the box") and message in trouble
    )
    assert found["a.jpg"].boxes[1:] == ((4, 4, 8, 8),)  # type: ignore[union-attr]
    assert found["b.jpg"] == Annotation(((0, 0, 1, 1),), ("cat",))


def test_a_csv_row_of_no_image_is_named_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,x0,y0,x1,y1,label\n,0,0,1,1,cat\nb.jpg,0,0,1,1,cat\n")
    with pytest.raises(BadBoxError, match=r"a.csv: line 2: it has no path"):
        read_csv(tmp_path / "a.csv")
    left_out: list[BadFileError] = []
    assert set(read_csv(tmp_path / "a.csv", left_out.append)) == {"b.jpg"}
    assert len(left_out) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the columns path, x0, y0, x1, y1, label are missing"),
        ("path,x0,y0,x1,label\n", "the columns y1 are missing, .*; needed are path, x0, y0, x1, y1, label"),
        ("path;x0;y0;x1;y1;label\na.jpg;0;0;1;1;cat\n", "are missing, .*with commas between them"),
        ("path,path,x0,y0,x1,y1,label\n", "the columns path are missing, or stand there twice"),
        ('path,x0,y0,x1,y1,label\na.jpg,0,0,1,1,"cat\nb.jpg,0,0,1,1,dog\n', "the file is not valid CSV"),
        ("path,x0,y0,x1,y1,label\n" + "a" * 200_000, r"the file is not valid CSV \(field larger than field limit"),
        ("path,x0,y0,x1,y1,label\na\0.jpg,0,0,1,1,cat\n", "the file is not UTF-8 text"),
    ],
)
def test_what_is_not_such_a_csv_file_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(BadFileError, match=f"a.csv: .*{message}"):
        read_csv(tmp_path / "a.csv")


@pytest.mark.parametrize("read", [read_voc, read_coco, read_csv, lambda path: read_yolo(path, (8, 8), ["a"])])
def test_missing_files_folders_and_bytes_that_are_no_text_are_named(tmp_path: Path, read: Any) -> None:
    with pytest.raises(BadFileError, match="none: the file does not exist"):
        read(tmp_path / "none")
    with pytest.raises(BadFileError, match="the file cannot be opened"):
        read(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\x81")
    with pytest.raises(BadFileError, match=r"bytes: the file is not (UTF-8 text|valid XML|valid JSON)"):
        read(tmp_path / "bytes")
