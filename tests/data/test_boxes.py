"""One bad box is its image's trouble: in every reader named, or left out and counted, and the labels stay right."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_cases import CONFIG, Pictures, save_mask, save_picture
from test_annotations import voc_file, voc_object

from litcam.data import CUB200DataModule, FolderDataModule, ImageNetDataModule, Record, VOC2012DataModule
from litcam.data.boxes import BadBoxError, counted, with_boxes
from litcam.data.image_files import ImageFilesDataModule
from litcam.data.reading import BadFileError
from litcam.errors import InputError

SIZE = (80, 60)
GOOD, BAD = "good", "bad"  # boxes as the writers below know them
Corners = tuple[float, float, float, float]
BOX: Corners = (16, 12, 44, 40)
Images = dict[str, list[str]]  # the boxes of each image, by its name
Write = Callable[[Path, Images], dict[str, Any]]


def write_voc(root: Path, images: Images) -> dict[str, Any]:
    for name, boxes in images.items():
        objects = [voc_object("cat", (17, 13, 44, 40) if box == GOOD else (17, 13, 15, 40)) for box in boxes]
        voc_file(root / "boxes" / f"{name}.xml", *objects)
    return {"boxes": "voc", "boxes_path": "boxes"}


def write_coco(root: Path, images: Images) -> dict[str, Any]:
    entries = [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate(images)]
    objects = [
        {"id": 10 * number + place, "image_id": number, "category_id": 1, "bbox": [16, 12, 28, 28 * (box == GOOD)]}
        for number, boxes in enumerate(images.values())
        for place, box in enumerate(boxes)
    ]
    data = {"images": entries, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
    (root / "boxes.json").write_text(json.dumps(data))
    return {"boxes": "coco", "boxes_path": "boxes.json"}


def write_yolo(root: Path, images: Images) -> dict[str, Any]:
    (root / "boxes").mkdir()
    (root / "boxes" / "classes.txt").write_text("cat\n")
    for name, boxes in images.items():
        lines = [f"0 {30 / 80} {26 / 60} {28 / 80} {28 / 60 * (box == GOOD)}\n" for box in boxes]
        (root / "boxes" / f"{name}.txt").write_text("".join(lines))
    return {"boxes": "yolo", "boxes_path": "boxes"}


def write_csv(root: Path, images: Images) -> dict[str, Any]:
    rows = [f"{name}.png,16,12,{44 if box == GOOD else 16},40,cat" for name, boxes in images.items() for box in boxes]
    (root / "boxes.csv").write_text("\n".join(["path,x0,y0,x1,y1,label", *rows]))
    return {"boxes": "csv", "boxes_path": "boxes.csv"}


def folder(root: Path, write: Write, images: Images, **more: Any) -> FolderDataModule:
    """A class of images with a training image and as many validation images as are asked for."""
    for name in images:
        save_picture(root / ("train" if name == "first" else "val") / "cat" / f"{name}.png", SIZE)
    arguments = {"eval_resize": "squash", "num_workers": 0, **write(root, images), **more}
    module = FolderDataModule(str(root), **arguments)
    module.use_data_config(CONFIG)
    return module


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (write_voc, r"some.xml: object 2, cat: the box \(17, 13, 15, 40\) has no area"),
        (write_coco, r"boxes.json: annotation 11 of some.png: the box \(16, 12, 28, 0\) has no area"),
        (write_yolo, r"some.txt: line 2: the box \(0.375, .*, 0\) has no area"),
        (write_csv, r"boxes.csv: line 4, of some.png: the box \(16, 12, 16, 40\) has no area"),
    ],
)
def test_a_bad_box_is_named_or_left_out_and_takes_only_an_image_without_another_along(
    tmp_path: Path, write: Any, named: str
) -> None:
    images = {"first": [GOOD], "some": [GOOD, BAD, GOOD], "whole": [GOOD], "zero": [BAD, BAD]}
    with pytest.raises(InputError, match=f"{named} .on_error: skip"):
        folder(tmp_path, write, images).records("val")
    module = folder(tmp_path / "again", write, images, on_error="skip")
    with pytest.warns(UserWarning, match=r"1 file and 3 boxes are left out \(on_error: skip\)") as caught:
        records = module.usable_records("val")
    assert [(record.path.stem, record.boxes) for record in records] == [
        ("some", (pytest.approx(BOX), pytest.approx(BOX))),
        ("whole", (pytest.approx(BOX),)),
    ]
    assert "zero.png: none of the image's boxes is usable" in str(caught[0].message)


@pytest.mark.parametrize("boxes", [(BOX, (85, 2, 90, 9)), (BOX, (10, 10, 10 + 1e-9, 20))])
def test_a_box_that_only_the_picture_shows_to_be_bad_is_left_out(tmp_path: Path, boxes: tuple[Corners, ...]) -> None:
    path = save_picture(tmp_path / "one.png", SIZE)
    record = Record(path, (0,), "one", boxes, (0, 0))
    with pytest.raises(InputError, match=r"one.png: nothing of the box \(.*\) lies in the image of 80 by 60 pixels"):
        Pictures([record]).dataset("val")[0]
    module = Pictures([record], on_error="skip", eval_resize="squash")
    with pytest.warns(UserWarning, match="1 box is left out"):
        sample: Any = module.dataset("val")[0]
    assert sample["boxes"].tolist() == [pytest.approx([9.6, 9.6, 26.4, 32.0])]
    dataset = module.dataset("train")
    with pytest.warns(UserWarning, match="left out of the training: .*nothing of the box") as caught:
        assert [len(dataset[index]["boxes"]) <= 1 for index in (0, 1)] == [True, True]
    assert len(caught) == 1
    assert not dataset.is_bad.any()  # type: ignore[attr-defined]


def test_an_image_whose_boxes_its_mask_numbers_goes_with_one_of_them(tmp_path: Path) -> None:
    """Else the mask's 2 would be the box that was the third."""
    images = {"first": [GOOD], "some": [BAD, GOOD], "whole": [GOOD]}
    for name, boxes in images.items():
        numbers = [((2 * n, 0, 2 * n + 1, 9), n + 1) for n in range(len(boxes))]
        save_mask(tmp_path / "masks" / f"{name}.png", SIZE, *numbers)
    module = folder(tmp_path, write_voc, images, on_error="skip", masks="masks", mask_values="instances")
    assert [record.path.stem for record in module.records("val")] == ["whole"]
    assert "some.png: the image's mask numbers its boxes, of which one is not usable" in list(module.left_out)[-1]
    plain = folder(tmp_path / "plain", write_voc, images, on_error="skip")
    assert [record.path.stem for record in plain.records("val")] == ["some", "whole"]


def test_errors_are_counted_by_what_they_are_of() -> None:
    file, box = BadFileError, BadBoxError
    assert counted([file]) == "1 file"
    assert counted([file, box, file, box]) == "2 files and 2 boxes"
    assert counted([box], "bad ") == "1 bad box"
    assert counted([]) == ""


def test_a_record_keeps_what_is_usable(tmp_path: Path) -> None:
    record, box = Record(tmp_path, (0,), "one"), BadBoxError("b: no")
    left_out: list[BadFileError] = []
    assert with_boxes(record, [], [], left_out.append) == replace(record, boxes=())
    assert with_boxes(record, [BOX, box], [2, 1], left_out.append) == replace(record, boxes=(BOX,), box_labels=(2,))
    assert left_out == [box]


def test_the_label_of_a_bad_voc_box_stays(tmp_path: Path) -> None:
    """The image has a dog, wherever it is: without it the image would pass for one of cats alone."""
    base = tmp_path / "VOCdevkit" / "VOC2012"
    (base / "ImageSets" / "Main").mkdir(parents=True)
    (base / "ImageSets" / "Main" / "val.txt").write_text("\ufeffboth\n\nhard \nbare\n", encoding="utf-8")
    bad = voc_object("dog", (20, 20, 10, 10))
    for name, objects in {"both": [voc_object(), bad], "hard": [bad, voc_object("dog")], "bare": [bad]}.items():
        save_picture(base / "JPEGImages" / f"{name}.jpg", SIZE)
        voc_file(base / "Annotations" / f"{name}.xml", *objects)
    several = VOC2012DataModule(str(tmp_path), multi_label=True, on_error="skip").records("val")
    assert [(record.id, record.labels, record.box_labels) for record in several] == [
        ("both", (7, 11), (7,)),
        ("hard", (11,), (11,)),
    ]
    assert [record.id for record in VOC2012DataModule(str(tmp_path), on_error="skip").records("val")] == ["hard"]
    with pytest.raises(InputError, match=r"both.xml: object 2, dog: the box \(20, 20, 10, 10\) has no area"):
        VOC2012DataModule(str(tmp_path), multi_label=True).records("val")


def test_a_bad_box_of_imagenet_leaves_the_other_and_the_label(tmp_path: Path) -> None:
    for name in ("val_1", "val_2"):
        save_picture(tmp_path / "val" / "n01440764" / f"{name}.JPEG", SIZE)
    rows = ["ImageId,PredictionString", "val_1,n01440764 8 4 7 9 n01440764 5 5 5 5", "val_2,n01440764 nan 4 7 9", "x,"]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows))
    module = ImageNetDataModule(str(tmp_path), on_error="skip")
    (record,) = module.records("val")
    assert (record.id, record.boxes) == ("val_1", ((5, 5, 6, 6),))
    assert list(module.left_out.values()) == [BadFileError, BadBoxError, BadBoxError, BadFileError]


BROKEN = b'<?xml version="1.0" encoding="klingon"?><annotation/>'


def of_folder(root: Path) -> Any:
    for name in ("train/cat/a", "train/cat/b", "val/cat/c", "val/cat/d"):
        save_picture(root / f"{name}.png", SIZE)
        voc_file(root / f"{name}.xml", voc_object())
    for name in ("train/cat/a", "val/cat/d"):
        (root / f"{name}.xml").write_bytes(BROKEN)
    return FolderDataModule(str(root), boxes="voc", on_error="skip", num_workers=0)


def of_yolo(root: Path) -> Any:
    of_folder(root)
    (root / "classes.txt").write_text("cat")
    for name in ("train/cat/a", "train/cat/b", "val/cat/c", "val/cat/d"):
        (root / f"{name}.txt").write_bytes(b"0 .5 .5 .5 .5" if name[-1] in "bc" else b"\xff\x81")
    return FolderDataModule(str(root), boxes="yolo", on_error="skip", num_workers=0)


def of_voc(root: Path) -> Any:
    base = root / "VOCdevkit" / "VOC2012"
    (base / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in (("train", "ab"), ("val", "cd")):
        (base / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            save_picture(base / "JPEGImages" / f"{name}.jpg", SIZE)
            voc_file(base / "Annotations" / f"{name}.xml", voc_object())
    for name in "ad":
        (base / "Annotations" / f"{name}.xml").write_bytes(BROKEN)
    return VOC2012DataModule(str(root), on_error="skip", num_workers=0)


def of_imagenet(root: Path) -> Any:
    for name in ("train/n01440764/b", "val/n01440764/c", "val/n01440764/d"):
        save_picture(root / f"{name}.JPEG", SIZE)
    for name in "cd":
        file = voc_file(root / "Annotations" / "CLS-LOC" / "val" / f"{name}.xml", voc_object("n01440764"))
    file.write_bytes(BROKEN)
    return ImageNetDataModule(str(root), on_error="skip", num_workers=0)


@pytest.mark.parametrize("make", [of_folder, of_yolo, of_voc, of_imagenet])
def test_an_annotation_that_no_parser_reads_takes_its_image_along_at_setup(tmp_path: Path, make: Any) -> None:
    module = make(tmp_path)
    module.use_data_config(CONFIG)
    with pytest.warns(UserWarning, match=r"1 file is left out \(on_error: skip\)"):
        module.setup("fit")
    names = {sentence.split(": ", 1)[0].rsplit("/", 1)[1][:1] for sentence in module.left_out}
    assert names == ({"d"} if make is of_imagenet else {"a", "d"})
    kept = [module.usable_records(split)[0].path.stem for split in ("train", "val")]
    assert kept == ["b", "c"]


def cub(root: Path) -> Path:
    base = root / "CUB_200_2011"
    lists = {
        "classes": "1 001.A\n2 002.B\n",
        "images": "1 001.A/1.jpg\n2 002.B/2.jpg\n3 002.B/3.jpg\n\n",
        "train_test_split": "1 1\n2 0\n3 0\n",
        "image_class_labels": "1 1\n2 2\n3 2\n",
        "bounding_boxes": "1 8 4 16 12\n2 8 4 16 12\n3 8 4 16 12\n",
    }
    for line in lists["images"].split("\n")[:3]:
        save_picture(base / "images" / line.split()[1], SIZE)
    for name, text in lists.items():
        (base / f"{name}.txt").write_text("\ufeff" + text, encoding="utf-8")
    return base


@pytest.mark.parametrize(
    ("name", "line", "named"),
    [
        ("bounding_boxes", "2 8 4 16 -1", "image 2, 002.B/2.jpg: the box (8, 4, 16, -1) has no area"),
        ("bounding_boxes", "2 8 4 16", "image 2, 002.B/2.jpg: the box has to be 4 numbers, not ['8', '4', '16']"),
        (
            "bounding_boxes",
            "2 8 4 16 nan",
            "image 2, 002.B/2.jpg: the box has to be 4 numbers, not ['8', '4', '16', 'nan']",
        ),
        ("image_class_labels", "2 B", "line 2: '2 B' has to be '<image id> <class id>'"),
        ("image_class_labels", "2 2\n2 1", "line 3: 2 stands there for the second time"),
        ("train_test_split", "2 maybe", "line 2: '2 maybe' has to be '<image id> <1 for training, else 0>'"),
        ("images", "2 002.B/2.jpg more", "line 2: '2 002.B/2.jpg more' has to be '<image id> <path in images>'"),
    ],
)
def test_a_bad_line_of_cub_is_its_images_trouble(tmp_path: Path, name: str, line: str, named: str) -> None:
    path = cub(tmp_path) / f"{name}.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]))
    with pytest.raises(InputError) as error:
        CUB200DataModule(str(tmp_path)).records("val")
    assert f"{name}.txt: {named}" in str(error.value)
    module: ImageFilesDataModule = CUB200DataModule(str(tmp_path), on_error="skip")
    assert [record.path.stem for record in module.records("val")] == ["3"]


def yolo(root: Path, on_error: Any = "raise", **labels: str) -> FolderDataModule:
    """Four images of two classes, and text files by name."""
    for name in ("train/cat/a", "train/black cat/b", "val/cat/c", "val/black cat/d"):
        save_picture(root / "images" / f"{name}.png", SIZE)
    (root / "labels").mkdir()
    for name, text in {"classes": "\ufeff  cat \r\n\r\nblack cat\r\n \r\n", **labels}.items():
        (root / "labels" / f"{name}.txt").write_text(text, encoding="utf-8")
    place = {"boxes_path": str(root / "labels"), "boxes": "yolo"}
    module = FolderDataModule(str(root / "images"), num_workers=0, on_error=on_error, **place)  # type: ignore[arg-type]
    module.use_data_config(CONFIG)
    return module


def test_an_image_without_yolo_file_is_background_and_other_text_is_no_label(tmp_path: Path) -> None:
    other = {"README": "Boxes by hand, 2 per image.\n", "train": "images/train/cat/a.png\n", "notes": ""}
    module = yolo(tmp_path, a="0 .5 .5 .5 .5\n\n", b="1 .5 .5 .1 .1\n1 .5 .5 .5 .5", c=" \n", **other)
    assert module.class_names == ["black cat", "cat"]
    found = {record.path.stem: (record.boxes, record.box_labels) for record in module.records("train")}
    assert found == {"b": (((36, 27, 44, 33), (20, 15, 60, 45)), (0, 0)), "a": (((20, 15, 60, 45),), (1,))}
    assert [(record.path.stem, record.boxes) for record in module.records("val")] == [("d", ()), ("c", ())]
    batch = next(iter(module.val_dataloader()))
    assert batch["boxes"].shape == (0, 5)
    assert torch.equal(batch["label"], torch.tensor([0, 1]))


def test_a_yolo_file_of_no_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"e.txt: there is no image to the annotation e"):
        yolo(tmp_path, a="0 .5 .5 .5 .5", e="0 .5 .5 .5 .5").records("train")


def test_without_any_yolo_file_nothing_is_taken_for_background(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No image has a text file of its name in .*labels; boxes_path is where"):
        yolo(tmp_path, README="Nothing yet").records("train")


def test_an_image_whose_yolo_file_is_in_doubt_is_no_background(tmp_path: Path) -> None:
    """Two images have the name of the one file."""
    save_picture(tmp_path / "images" / "val" / "cat" / "a.png", SIZE)
    module = yolo(tmp_path, "skip", a="0 .5 .5 .5 .5", b="1 .5 .5 .5 .5")
    assert [record.path.stem for split in ("train", "val") for record in module.records(split)] == ["b", "d", "c"]  # type: ignore[arg-type]
    label, *images = (sentence.split(": ", 1)[1] for sentence in module.left_out)
    assert label.startswith("the annotation a fits 2 images")
    assert images == ["the image has no annotation"] * 2


@pytest.mark.parametrize(("kind", "suffix"), [("coco", "json"), ("csv", "csv")])
def test_a_bad_file_of_several_is_left_out_with_its_images(tmp_path: Path, kind: str, suffix: str) -> None:
    write = write_coco if kind == "coco" else write_csv
    folder(tmp_path, write, {"first": [GOOD], "some": [GOOD]})
    save_picture(tmp_path / "val" / "cat" / "other.png", SIZE)
    (tmp_path / "all").mkdir()
    (tmp_path / f"boxes.{suffix}").rename(tmp_path / "all" / f"a.{suffix}")
    (tmp_path / "all" / f"b.{suffix}").write_text("[" * 200_000)
    place: dict[str, Any] = {"boxes": kind, "boxes_path": "all", "num_workers": 0}
    with pytest.raises(InputError, match=f"b.{suffix}: "):
        FolderDataModule(str(tmp_path), **place).records("val")
    module = FolderDataModule(str(tmp_path), on_error="skip", **place)
    assert [record.path.stem for record in module.records("val")] == ["some"]
    assert len(module.left_out) == 2
    (tmp_path / "all" / f"a.{suffix}").unlink()
    with pytest.raises(BadFileError, match=f"b.{suffix}: "):  # no image has an annotation then
        FolderDataModule(str(tmp_path), on_error="skip", **place).records("val")
