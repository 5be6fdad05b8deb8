"""A user's folder: layouts, splits, the four box formats, masks, and every trouble named or counted."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_cases import CONFIG, filled, save_mask, save_picture
from test_annotations import voc_file, voc_object

from litcam.data import FolderDataModule
from litcam.errors import InputError

SIZE = (80, 60)
BOX = (16, 12, 44, 40)


def make_folder(root: Path, train: int = 3, val: int = 2, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """train/<class>/0.jpg … and val/<class>/0.jpg …, each with the box BOX."""
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            for index in range(count):
                save_picture(root / split / name / f"{index}.jpg", SIZE, BOX)
    return root


def make_module(root: Path, **arguments: Any) -> FolderDataModule:
    module = FolderDataModule(str(root), **{"eval_resize": "squash", "batch_size": 2, "num_workers": 0, **arguments})
    module.use_data_config(CONFIG)
    return module


def ids(module: FolderDataModule, split: Any) -> list[str]:
    return [record.id for record in module.records(split)]


def test_split_folders_with_a_folder_per_class(tmp_path: Path) -> None:
    save_picture(tmp_path / "test" / "dog" / "deeper" / "0.PNG", SIZE)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no picture")
    save_picture(tmp_path / "train" / "cat" / ".hidden.jpg")
    module = make_module(make_folder(tmp_path))
    assert module.class_names == ["cat", "dog"]
    assert ids(module, "val") == ["val/cat/0.jpg", "val/cat/1.jpg", "val/dog/0.jpg", "val/dog/1.jpg"]
    assert ids(module, "test") == ["test/dog/deeper/0.PNG"]
    assert [record.labels for record in module.records("train")] == [(0,)] * 3 + [(1,)] * 3
    batch = next(iter(module.val_dataloader()))
    assert set(batch) == {"image", "label", "id"}


def test_a_missing_test_split_is_an_error_only_when_it_is_asked_for(tmp_path: Path) -> None:
    module = make_module(make_folder(tmp_path))
    with pytest.raises(InputError, match="There is no usable image for test"):
        module.test_dataloader()


def test_without_split_folders_each_class_is_shared_out_by_the_seed(tmp_path: Path) -> None:
    for name, count in (("cat", 20), ("dog", 10)):
        for index in range(count):
            save_picture(tmp_path / name / f"{index:02}.jpg", (8, 8))
    splits = {split: ids(make_module(tmp_path, test_share=0.1), split) for split in ("train", "val", "test")}
    assert {split: len(found) for split, found in splits.items()} == {"train": 21, "val": 6, "test": 3}
    assert sorted(name for names in splits.values() for name in names) == sorted(
        [f"cat/{index:02}.jpg" for index in range(20)] + [f"dog/{index:02}.jpg" for index in range(10)]
    )
    assert sum(name.startswith("cat") for name in splits["val"]) == 4
    assert ids(make_module(tmp_path), "val") == ids(make_module(tmp_path), "val")
    assert ids(make_module(tmp_path, seed=1), "val") != ids(make_module(tmp_path), "val")


def test_a_pattern_finds_the_class_in_the_file_name(tmp_path: Path) -> None:
    for name in ("rolled-in_scale_1", "rolled-in_scale_12", "patches_1", "patches_2", "patches_3"):
        save_picture(tmp_path / "images" / f"{name}.jpg", (8, 8))
    module = make_module(tmp_path, class_pattern=r"(.+)_\d+", val_share=0.5)
    assert module.class_names == ["patches", "rolled-in_scale"]
    save_picture(tmp_path / "images" / "other.jpg", (8, 8))
    with pytest.raises(InputError, match=r"other.jpg: class_pattern '\(.+\)_\\\\d\+' finds no class in the name"):
        make_module(tmp_path, class_pattern=r"(.+)_\d+").records("train")


def write_voc(root: Path, images: list[Path]) -> dict[str, str]:
    for path in images:
        voc_file((root / "xml" / path).with_suffix(".xml"), voc_object(path.parts[-2], (17, 13, 44, 40)))
    return {"boxes": "voc", "boxes_path": "xml"}


def write_coco(root: Path, images: list[Path]) -> dict[str, str]:
    entries = [{"id": n, "file_name": str(path), "width": 80, "height": 60} for n, path in enumerate(images)]
    objects = [
        {"image_id": n, "category_id": path.parts[-2] == "dog", "bbox": [16, 12, 28, 28]}
        for n, path in enumerate(images)
    ]
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    (root / "all.json").write_text(json.dumps({"images": entries, "annotations": objects, "categories": categories}))
    return {"boxes": "coco", "boxes_path": "all.json"}


def write_yolo(root: Path, images: list[Path]) -> dict[str, str]:
    (root / "labels").mkdir()
    (root / "labels" / "classes.txt").write_text("dog\ncat\n")
    for path in images:
        line = f"{int(path.parts[-2] == 'cat')} {30 / 80} {26 / 60} {28 / 80} {28 / 60}\n"
        target = (root / "labels" / path).with_suffix(".txt")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(line)
    return {"boxes": "yolo", "boxes_path": "labels"}


def write_csv(root: Path, images: list[Path]) -> dict[str, str]:
    rows = [f"{path},16,12,44,40,{path.parts[-2]}" for path in images]
    (root / "boxes.csv").write_text("\n".join(["path,x0,y0,x1,y1,label", *rows]))
    return {"boxes": "csv", "boxes_path": "boxes.csv"}


@pytest.mark.parametrize("write", [write_voc, write_coco, write_yolo, write_csv])
@pytest.mark.parametrize("how", ["with the split", "by class", "windows"])
def test_boxes_of_every_format_come_to_their_image(tmp_path: Path, write: Any, how: str) -> None:
    root = make_folder(tmp_path, train=2, val=1)
    images = sorted(path.relative_to(root) for path in root.rglob("*.jpg"))
    if how == "by class":  # names are unique within a class here
        for path in sorted(root.glob("val/*/0.jpg")):
            path.rename(path.with_name("9.jpg"))
        images = [path.relative_to(path.parents[1]) for path in sorted(root.rglob("*.jpg"))]
    if how == "windows" and write in (write_csv, write_coco):
        arguments = write(root, images)
        file = root / arguments["boxes_path"]
        file.write_text(file.read_text().replace("/", "\\" if write is write_csv else "\\\\"))
    else:
        arguments = write(root, images)
    module = make_module(root, **arguments)
    for split in ("train", "val"):
        for record in module.records(split):  # type: ignore[arg-type]
            assert record.boxes is not None
            assert record.boxes[0] == pytest.approx(BOX)
            assert record.box_labels == record.labels
    batch = next(iter(module.val_dataloader()))
    torch.testing.assert_close(batch["boxes"][0, 1:], torch.tensor([9.6, 9.6, 26.4, 32.0]), rtol=0, atol=1e-3)


def test_masks_come_to_their_image(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=1, val=1)
    for path in sorted(root.rglob("*.jpg")):
        save_mask((root / "masks" / path.relative_to(root)).with_suffix(".png"), SIZE, (BOX, 255))
    module = make_module(root, masks="masks")
    sample = module.dataset("val")[0]
    assert "boxes" not in sample
    expected = filled(torch.tensor([[9.6, 9.6, 26.4, 32.0]]), (48, 48))[0]
    assert torch.equal(sample["mask"] == 1, expected)
    assert sample["mask"].unique().tolist() == [0, 1]


def test_boxes_of_other_classes_are_left_aside(tmp_path: Path) -> None:
    root = make_folder(tmp_path, train=1, val=1)
    for path in sorted(root.rglob("*.jpg")):
        objects = (voc_object("dog", (1, 1, 9, 9)), voc_object("cat", (17, 13, 44, 40)))
        voc_file((root / "xml" / path.relative_to(root)).with_suffix(".xml"), *objects)
    sample = make_module(root, boxes="voc", boxes_path="xml").dataset("val")[0]
    assert sample["instance_labels"].tolist() == [0]
    assert len(sample["boxes"]) == 1


def broken(root: Path, what: str) -> None:
    """Do something wrong to a folder of two classes."""
    xml = root / "xml"
    if what == "empty class":
        (root / "train" / "emu").mkdir()
    elif what == "class only in val":
        save_picture(root / "val" / "emu" / "0.jpg")
    elif what == "class only in train":
        save_picture(root / "train" / "emu" / "0.jpg")
    elif what == "image outside of classes":
        save_picture(root / "train" / "0.jpg")
    elif what == "not UTF-8":
        save_picture(root / "plain.jpg").rename(Path(os.fsdecode(os.fsencode(root) + b"/train/cat/caf\xe9.jpg")))
    elif what == "image without annotation":
        (xml / "train" / "cat" / "0.xml").unlink()
    elif what == "annotation without image":
        voc_file(xml / "train" / "cat" / "99.xml", voc_object())
    elif what == "size 0 by 0":
        voc_file(xml / "train" / "cat" / "0.xml", voc_object(), size=(0, 0))
    elif what == "unknown class of a box":
        voc_file(xml / "train" / "cat" / "0.xml", voc_object("emu"))
    elif what == "image without mask":
        (root / "masks" / "train" / "cat" / "0.png").unlink()
    elif what == "mask without image":
        save_mask(root / "masks" / "train" / "cat" / "99.png", SIZE)


@pytest.mark.parametrize(
    ("what", "message", "kept"),
    [
        ("empty class", "train/emu: the folder of this class has no image", 4),
        ("class only in val", "val/emu/0.jpg: val has the class emu, but train has not", 4),
        ("class only in train", "train/emu/0.jpg: train has the class emu, but val has not", 5),
        ("image outside of classes", "train/0.jpg: the image lies in no folder of a class", 4),
        ("not UTF-8", r"train/cat/caf\\xe9.jpg: the name is not UTF-8; rename it", 4),
        ("image without annotation", "train/cat/0.jpg: the image has no annotation", 3),
        ("annotation without image", "xml/train/cat/99.xml: there is no image to the annotation train/cat/99", 4),
        ("size 0 by 0", "xml/train/cat/0.xml: it says that the image is 0 by 0", 3),
        ("unknown class of a box", "cat/0.jpg: box 1: its annotation has the class emu, of which train has no", 3),
        ("image without mask", "train/cat/0.jpg: the image has no mask", 3),
        ("mask without image", "masks/train/cat/99.png: there is no image to the mask train/cat/99", 4),
    ],
)
def test_every_trouble_is_named_or_counted(tmp_path: Path, what: str, message: str, kept: int) -> None:
    root = make_folder(tmp_path, train=2, val=1)
    images = sorted(path.relative_to(root) for path in root.rglob("*.jpg"))
    arguments: dict[str, Any] = write_voc(root, images) if "annotation" in message or "xml" in message else {}
    if "mask" in what:
        arguments = {"masks": "masks"}
        for path in images:
            save_mask((root / "masks" / path).with_suffix(".png"), SIZE, (BOX, 1))
    broken(root, what)
    with pytest.raises(InputError, match=f"{message}.*on_error: skip") as error:
        make_module(root, **arguments).records("train")
    assert "\n" not in str(error.value)
    module = make_module(root, on_error="skip", **arguments)
    assert module.class_names == (["cat", "dog", "emu"] if what == "class only in train" else ["cat", "dog"])
    assert len(module.records("train")) == kept
    assert len(module.records("val")) == 2
    assert len(module.left_out) == 1 + (what == "unknown class of a box")  # and the image, which has no other box


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_pattern": "("}, "is no regular expression"),
        ({"class_pattern": "cat"}, "has no group; put the class in brackets"),
        ({"boxes": "pascal"}, "boxes is 'pascal'; choose one of None, voc, coco, yolo, csv"),
        ({"mask_values": "palette"}, "mask_values is 'palette'"),
        ({"val_share": 0.8, "test_share": 0.2}, "have to leave something to train on"),
    ],
)
def test_options_out_of_range_are_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_module(tmp_path, **arguments)


def test_places_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"root is '.*nowhere', which is no folder"):
        make_module(tmp_path / "nowhere").records("train")
    with pytest.raises(InputError, match=r"There is no image to train on in .*; expected are train/<class>"):
        make_module(tmp_path).records("train")
    make_folder(tmp_path)
    for arguments, message in (
        ({"boxes": "voc", "boxes_path": "xml"}, r"boxes_path is '.*xml', which is no folder of voc files"),
        ({"boxes": "coco", "boxes_path": "all.json"}, r"all.json: the file does not exist"),
        ({"boxes": "yolo"}, r"classes.txt: the file does not exist; it has to name YOLO's classes, one per line"),
        ({"masks": "masks"}, r"masks is '.*masks', which is no folder"),
    ):
        with pytest.raises(InputError, match=message):
            make_module(tmp_path, **arguments).records("train")
