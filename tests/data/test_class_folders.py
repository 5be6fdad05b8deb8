"""Folders as people have them: clutter, links, accents, small classes and odd names, each survived or named."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folder_cases import NFC, NFD, clutter, link, make_pipe, make_socket
from picture_cases import CONFIG, save_mask, save_picture
from test_annotations import voc_file, voc_object

from litcam.data import FolderDataModule
from litcam.data.check import check_data
from litcam.data.module import Split
from litcam.errors import InputError

SPLITS: tuple[Split, ...] = ("train", "val", "test")


def make_module(root: Path, **arguments: Any) -> FolderDataModule:
    module = FolderDataModule(str(root), **{"batch_size": 2, "num_workers": 0, **arguments})
    module.use_data_config(CONFIG)
    return module


def images_of(root: Path, count: int, *names: str) -> Path:
    """<name>/0.jpg … of each class."""
    for name in names:
        for index in range(count):
            save_picture(root / name / f"{index}.jpg", (8, 8))
    return root


def split_folders(root: Path, train: int = 2, val: int = 1) -> Path:
    images_of(root / "train", train, "cat", "dog")
    images_of(root / "val", val, "cat", "dog")
    return root


def everything(module: FolderDataModule) -> dict[str, tuple[str, str]]:
    """The split and the class of each image."""
    names = module.class_names
    records = [(record, split) for split in SPLITS for record in module.records(split)]
    assert len({record.id for record, _ in records}) == len(records), "an image is in one split"
    return {record.id: (split, names[record.labels[0]]) for record, split in records}


@pytest.mark.parametrize("with_splits", [True, False])
def test_hidden_and_system_folders_are_neither_classes_nor_images(tmp_path: Path, with_splits: bool) -> None:
    plain, cluttered = tmp_path / "plain", tmp_path / "cluttered"
    for root in (plain, cluttered):
        if with_splits:
            split_folders(root)
        else:
            images_of(root, 5, "cat", "dog")
    for folder in (cluttered, *(path for path in cluttered.rglob("*") if path.is_dir())):
        clutter(folder)
    assert everything(make_module(cluttered)) == everything(make_module(plain))


def test_what_macos_leaves_beside_annotations_and_masks_is_none_of_them(tmp_path: Path) -> None:
    root = split_folders(tmp_path / "data")
    for path in sorted(root.rglob("*.jpg")):
        name = path.relative_to(root).with_suffix("")
        voc_file(root / "xml" / f"{name}.xml", voc_object(path.parent.name, (1, 1, 4, 4)), size=(8, 8))
        save_mask(root / "masks" / f"{name}.png", (8, 8), ((1, 1, 4, 4), 255))
        (root / "xml" / name).with_name("._0.xml").write_bytes(b"\0\5\26\7")
        (root / "masks" / name).with_name("._0.png").write_bytes(b"\0\5\26\7")
        for folder in ("xml", "masks"):
            (root / folder / "@eaDir" / f"{name}.xml").mkdir(parents=True)
    module = make_module(root, boxes="voc", boxes_path="xml", masks="masks")
    assert all(record.boxes and record.mask for record in module.records("train"))


def test_folders_of_annotations_and_masks_are_no_classes(tmp_path: Path) -> None:
    root = images_of(tmp_path, 2, "cat", "dog")
    for path in sorted(root.rglob("*.jpg")):
        name = path.relative_to(root).with_suffix("")
        voc_file(root / "beside" / "xml" / f"{name}.xml", voc_object(path.parent.name, (1, 1, 4, 4)), size=(8, 8))
        save_mask(root / "beside" / "masks" / f"{name}.png", (8, 8), ((1, 1, 4, 4), 255))
    module = make_module(root, boxes="voc", boxes_path="beside/xml", masks="beside/masks")
    assert module.class_names == ["cat", "dog"]
    assert len(everything(module)) == 4


def test_a_root_below_a_hidden_folder_is_read(tmp_path: Path) -> None:
    root = split_folders(tmp_path / ".cache" / "@eaDir" / "lost+found")
    assert len(everything(make_module(root))) == 6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("val", "test"), "has a folder 'test', but none 'train'"),
        (("Train", "Val"), "has a folder 'Train', but none 'train'"),
        (("training", "validation"), "has a folder 'training', but none 'train'"),
        (("train", "valid", "test"), "has a folder 'valid', but none 'val'"),
        (("train", "dev"), "has a folder 'dev', but none 'val'"),
    ],
)
def test_folders_of_splits_are_never_taken_for_classes(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        images_of(tmp_path / name, 2, "cat", "dog")
    with pytest.raises(InputError, match=f"{message}: call the folders of the splits train, val"):
        make_module(tmp_path).records("train")


def test_a_folder_of_train_and_test_alone_still_has_its_test_images(tmp_path: Path) -> None:
    for name in ("train", "test"):
        images_of(tmp_path / name, 2, "cat", "dog")
    assert len(make_module(tmp_path).records("test")) == 4


def test_classes_may_have_the_names_of_splits(tmp_path: Path) -> None:
    images_of(tmp_path, 3, "test", "valid", "cat")
    assert make_module(tmp_path).class_names == ["cat", "test", "valid"]


def test_linked_classes_splits_and_files_are_those_that_they_lead_to(tmp_path: Path) -> None:
    store, root = split_folders(tmp_path / "store"), tmp_path / "root"
    expected = everything(make_module(store))
    link(root / "train" / "cat", store / "train" / "cat")
    link(root / "train" / "dog", "../../store/train/dog")
    link(root / "val", store / "val")
    assert everything(make_module(root)) == expected
    files = tmp_path / "files"
    for path in store.rglob("*.jpg"):
        link(files / path.relative_to(store), path)
    assert everything(make_module(files)) == expected
    assert next(iter(make_module(root).val_dataloader()))["image"].shape == (2, 3, 48, 48)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("train/emu", lambda path: link(path, "gone"), "train/emu: the link leads nowhere"),
        ("train/emu", lambda path: link(path, "emu"), "train/emu: the link leads in a circle"),
        ("train/cat/x", lambda path: link(path, "../.."), "the link leads back to a folder that it lies in"),
        ("train/cat/x.jpg", lambda path: link(path, "gone.jpg"), "train/cat/x.jpg: the link leads nowhere"),
        ("train/cat/x.png", lambda path: link(path, "x.png"), "train/cat/x.png: the link leads in a circle"),
        ("train/cat/x.JPG", make_pipe, r"x.JPG: the file cannot be opened \(it is a named pipe, no regular file\)"),
        ("val/dog/x.jpg", make_socket, r"x.jpg: the file cannot be opened \(it is a socket, no regular file\)"),
        ("val/dog/x.jpg", lambda path: link(path, "/dev/zero"), r"\(it is a device, no regular file\)"),
        ("train/dog/x.jpg", lambda path: link(path, "../cat/0.jpg"), "it is an image of several classes, cat and dog"),
        ("train/emu", lambda path: link(path, "cat"), "train/emu: it is the folder .*cat once more"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_or_left_out(
    tmp_path: Path, name: str, spoil: Callable[[Path], object], message: str
) -> None:
    root = split_folders(tmp_path)
    expected = everything(make_module(root))
    spoil(root / name)
    with pytest.raises(InputError, match=f"{message}.*on_error: skip") as error:
        make_module(root).records("train")
    assert "\n" not in str(error.value)
    module = make_module(root, on_error="skip")
    if "classes" in message:  # which of the two is right, nobody knows
        expected = {key: value for key, value in expected.items() if key != "train/cat/0.jpg"}
    assert everything(module) == expected
    assert any(f"/{name}: " in trouble for trouble in module.left_out)


def test_names_of_one_file_by_links_come_to_one_split(tmp_path: Path) -> None:
    images_of(tmp_path, 4, "cat")
    images_of(tmp_path, 4, "dog")
    for index in range(4):
        for copy in "abc":
            link(tmp_path / "cat" / f"{index}{copy}.jpg", f"{index}.jpg")
    for seed in range(5):
        found = everything(make_module(tmp_path, val_share=0.5, test_share=0.25, seed=seed))
        for index in range(4):
            assert len({split for path, (split, _) in found.items() if path.startswith(f"cat/{index}")}) == 1
        assert sum(split == "val" for split, name in found.values() if name == "cat") == 8


def test_validation_images_that_links_take_from_train_are_warned_of(tmp_path: Path) -> None:
    root = split_folders(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        everything(make_module(root))
    link(root / "val" / "dog" / "9.jpg", "../../train/dog/0.jpg")
    with pytest.warns(
        UserWarning, match=r"1 images of val or test are by links those of train, such as .*val/dog/9.jpg"
    ):
        assert len(everything(make_module(root))) == 7


def test_a_class_in_either_form_of_its_accents_is_one_class(tmp_path: Path) -> None:
    images_of(tmp_path / "train", 2, NFC, "dog")
    images_of(tmp_path / "val", 2, NFD, "dog")
    module = make_module(tmp_path)
    assert module.class_names == [NFC, "dog"]
    assert f"val/{NFC}/0.jpg" in everything(module)


@pytest.mark.parametrize("form", [NFC, NFD])
def test_annotations_and_masks_are_found_in_either_form(tmp_path: Path, form: str) -> None:
    other = NFD if form == NFC else NFC
    for split in ("train", "val"):
        save_picture(tmp_path / split / form / f"{form}.jpg", (8, 8))
        save_mask(tmp_path / "masks" / split / other / f"{other}.png", (8, 8), ((1, 1, 4, 4), 255))
    rows = [f"{split}/{other}/{other}.jpg,1,1,4,4,{other}" for split in ("train", "val")]
    (tmp_path / "boxes.csv").write_text("\n".join(["path,x0,y0,x1,y1,label", *rows]), encoding="utf-8")
    module = make_module(tmp_path, boxes="csv", boxes_path="boxes.csv", masks="masks")
    [record] = module.records("train")
    assert record.boxes == ((1, 1, 4, 4),)
    assert record.mask is not None
    pattern = make_module(tmp_path, class_pattern=f"({other})")
    assert pattern.class_names == [NFC]


def test_files_whose_names_differ_only_in_form_are_named(tmp_path: Path) -> None:
    root = split_folders(tmp_path)
    for form in (NFC, NFD):
        save_picture(root / "train" / "cat" / f"{form}.jpg", (8, 8))
    if len(list((root / "train" / "cat").glob("caf*"))) == 1:
        pytest.skip("this disk knows one form only")
    with pytest.raises(InputError, match=r"differs from '.*cat/caf.*' only in how accents are written \(NFC, NFD\)"):
        make_module(root).records("train")
    module = make_module(root, on_error="skip")
    assert len(everything(module)) == 6
    assert len(module.left_out) == 2


def test_an_annotation_named_after_the_whole_file_is_its(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for suffix, name in (("png", "cat"), ("jpg", "dog")):
            save_picture(tmp_path / split / name / f"img.{suffix}", (8, 8))
            box = voc_object(name, (1, 1, 4, 4))
            voc_file(tmp_path / split / name / f"img.{suffix}.xml", box, size=(8, 8))
    for record in make_module(tmp_path, boxes="voc").records("train"):
        assert record.box_labels == record.labels


def test_an_annotation_that_fits_two_images_says_so_and_its_remedy_works(tmp_path: Path) -> None:
    for path in ("train/cat/img.png", "train/cat/img.jpg", "val/cat/other.png"):
        save_picture(tmp_path / path, (8, 8))
    for name in ("img", "other"):
        voc_file(tmp_path / "xml" / f"{name}.xml", voc_object("cat", (1, 1, 4, 4)), size=(8, 8))
    with pytest.raises(InputError, match=r"the annotation img fits 2 images, such as train/cat/img.jpg and") as error:
        make_module(tmp_path, boxes="voc", boxes_path="xml").records("train")
    remedy = tmp_path / "xml" / str(error.value).split("folders and ending: ")[1].split(" (")[0]
    remedy.parent.mkdir(parents=True)
    (tmp_path / "xml" / "img.xml").rename(remedy)
    with pytest.raises(InputError, match=r"train/cat/img.png: the image has no annotation"):
        make_module(tmp_path, boxes="voc", boxes_path="xml").records("train")
    remedy.with_name("img.png.xml").write_bytes(remedy.read_bytes())
    assert len(make_module(tmp_path, boxes="voc", boxes_path="xml").records("train")) == 2


@pytest.mark.parametrize("shares", [(0.01, 0.0), (0.2, 0.0), (0.5, 0.4), (0.98, 0.01), (0.1, 0.89)])
def test_classes_of_two_images_and_more_have_one_in_train_and_val(tmp_path: Path, shares: tuple[float, float]) -> None:
    for count, name in enumerate(("two", "three", "four"), 2):
        images_of(tmp_path, count, name)
    found = everything(make_module(tmp_path, val_share=shares[0], test_share=shares[1]))
    assert len(found) == 9
    for split in ("train", "val"):
        assert {name for where, name in found.values() if where == split} == {"two", "three", "four"}


@pytest.mark.parametrize("remedy", ["add another", "remove the class with its folder", "on_error: skip"])
def test_the_only_image_of_a_class_is_named_and_each_remedy_works(tmp_path: Path, remedy: str) -> None:
    images_of(tmp_path, 1, "emu")
    images_of(tmp_path, 3, "cat", "dog")
    with pytest.raises(
        InputError, match=r"emu/0.jpg: it is the only image of the class emu, but train and val"
    ) as error:
        make_module(tmp_path).records("train")
    assert remedy in str(error.value)
    classes = ["cat", "dog"]
    if remedy == "add another":
        save_picture(tmp_path / "emu" / "1.jpg", (8, 8))
        classes = ["cat", "dog", "emu"]
    elif remedy.startswith("remove"):
        (tmp_path / "emu" / "0.jpg").unlink()
        (tmp_path / "emu").rmdir()
    module = make_module(tmp_path, on_error="skip" if "skip" in remedy else "raise")
    assert module.class_names == classes
    assert len(everything(module)) == 6 + 2 * (remedy == "add another")


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "it's", 'say "a"', "[bold]a", "  a  ", "a" * 240, "\x1b[31ma"])
def test_odd_names_are_read_and_shown_in_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        save_picture(tmp_path / split / name / f"{name}.jpg", (8, 8))
    module = make_module(tmp_path)
    assert module.class_names == [name]
    assert check_data(make_module(tmp_path))
    capsys.readouterr()
    (tmp_path / "val" / name / f"{name}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="the file is empty") as error:
        next(iter(module.val_dataloader()))
    assert str(error.value).isprintable()


def test_a_class_folder_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    root = split_folders(tmp_path)
    (root / "train" / "dog").rename(Path(os.fsdecode(os.fsencode(root) + b"/train/caf\xe9")))
    with pytest.raises(InputError, match=r"train/caf\\xe9/0.jpg: the name is not UTF-8; rename it"):
        make_module(root).records("train")


@pytest.mark.parametrize("suffix", ["JPG", "JPEG", "jfif", "webp", "tif", "TIFF", "PNG", "bmp", "gif"])
def test_images_of_every_ending_are_read(tmp_path: Path, suffix: str) -> None:
    for split in ("train", "val"):
        save_picture(tmp_path / split / "cat" / f"0.{suffix}", (8, 8))
    assert next(iter(make_module(tmp_path).val_dataloader()))["id"] == [f"val/cat/0.{suffix}"]
