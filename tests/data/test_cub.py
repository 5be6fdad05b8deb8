"""CUB-200-2011: records by hand, masks, and every way in which the lists can be wrong."""

from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from folder_cases import NFC, NFD, make_pipe
from PIL import Image

from litcam.data import CUB200DataModule
from litcam.data import cub as cub_module
from litcam.data.cub import cub_class_names, cub_records, download_cub
from litcam.errors import InputError

LISTS = {
    "classes.txt": "1 001.Black_footed_Albatross\n2 002.Sooty_Albatross\n",
    "images.txt": "1 001.Black_footed_Albatross/Black_1.jpg\n2 002.Sooty_Albatross/Sooty_2.jpg\n"
    "4 002.Sooty_Albatross/Sooty_4.jpg\n",
    "image_class_labels.txt": "1 1\n2 2\n4 2\n",
    "train_test_split.txt": "1 0\n2 1\n4 0\n",
    "bounding_boxes.txt": "1 8.0 4.0 16.0 12.0\n2 0.0 0.0 40.0 24.0\n4 2.5 3.0 10.0 20.5\n",
}
CONFIG = {"input_size": (3, 24, 40), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}


def make_cub(root: Path, **lists: str) -> Path:
    """Three images of 40 by 24 pixels; a list is replaced by name without suffix."""
    folder = root / "CUB_200_2011"
    for number, line in enumerate(LISTS["images.txt"].splitlines()):
        image = folder / "images" / line.split()[1]
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 24), (40 * number, 0, 0)).save(image)
    for name, text in LISTS.items():
        (folder / name).write_text(lists.get(name.removesuffix(".txt"), text))
    return folder


def make_masks(folder: Path) -> None:
    """Masks of a bird from (8, 4) to (24, 16), drawn by three annotators of five, and a spot drawn by two."""
    mask = np.zeros((24, 40), np.uint8)
    mask[4:16, 8:24] = 153
    mask[4, 8] = 255
    mask[20, 30] = 102
    for line in LISTS["images.txt"].splitlines():
        path = (folder / line.split()[1]).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)


def make_module(root: Path, **arguments: Any) -> CUB200DataModule:
    module = CUB200DataModule(str(root), batch_size=2, num_workers=0, eval_resize="squash", **arguments)
    module.use_data_config(CONFIG)
    return module


@pytest.mark.parametrize("inside", [True, False])
def test_records_follow_the_lists(tmp_path: Path, inside: bool) -> None:
    folder = make_cub(tmp_path)
    root = folder if inside else tmp_path
    first, second = cub_records(root, "test")
    assert cub_records(root, "val") == [first, second]
    assert first.path == folder / "images" / "001.Black_footed_Albatross" / "Black_1.jpg"
    assert (first.id, first.labels, first.boxes, first.box_labels) == ("Black_1", (0,), ((8, 4, 24, 16),), (0,))
    assert (second.id, second.labels, second.boxes) == ("Sooty_4", (1,), ((2.5, 3, 12.5, 23.5),))
    assert [(record.id, record.mask) for record in cub_records(root, "train")] == [("Sooty_2", None)]
    assert cub_class_names(root) == ["Black footed Albatross", "Sooty Albatross"]


@pytest.mark.parametrize("place", ["segmentations", "CUB_200_2011/segmentations"])
def test_what_most_annotators_drew_is_the_mask(tmp_path: Path, place: str) -> None:
    make_masks(make_cub(tmp_path).parent / place)
    batch = next(iter(make_module(tmp_path).val_dataloader()))
    assert batch["id"] == ["Black_1", "Sooty_4"]
    assert batch["label"].tolist() == [0, 1]
    assert batch["boxes"].tolist() == [[0, 8, 4, 24, 16], [1, 2.5, 3, 12.5, 23.5]]
    expected = torch.zeros(24, 40, dtype=torch.uint8)
    expected[4:16, 8:24] = 1
    assert torch.equal(batch["mask"][0], expected)


def test_without_segmentations_there_is_no_mask(tmp_path: Path) -> None:
    make_cub(tmp_path)
    assert "mask" not in next(iter(make_module(tmp_path).train_dataloader()))


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"images": "2 a/b.jpg extra\n"}, r"images.txt: line 1: '2 a/b.jpg extra' has to be '<image id> <path"),
        (
            {"bounding_boxes": "1 8 4 16 12\n2 0 0 40\n"},
            r"bounding_boxes.txt: image 2, .*Sooty_2.jpg: the box has to be 4 numbers, not \['0', '0', '40'\]",
        ),
        (
            {"bounding_boxes": "1 8 4 16 12\n2 0 0 40 nan\n"},
            r"has to be 4 numbers, not \['0', '0', '40', 'nan'\]",
        ),
        ({"train_test_split": "1 0\n2 yes\n"}, r"train_test_split.txt: line 2: '2 yes'"),
        (
            {"image_class_labels": "1 1\n2 2\n2 2\n"},
            "image_class_labels.txt: line 3: 2 stands there for the second",
        ),
        ({"classes": "1\n"}, r"classes.txt: line 1: '1' has to be '<class id> <name>'"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    make_cub(tmp_path, **lists)
    with pytest.raises(InputError, match=message):
        cub_records(tmp_path, "train")


def test_some_of_the_classes_may_keep_their_numbers(tmp_path: Path) -> None:
    make_cub(
        tmp_path,
        classes="7 007.Parakeet_Auklet\n3 003.Sooty_Albatross\n",
        image_class_labels="1 7\n2 3\n4 3\n",
    )
    assert cub_class_names(tmp_path) == ["Sooty Albatross", "Parakeet Auklet"]
    assert {record.id: record.labels for split in ("train", "val") for record in cub_records(tmp_path, split)} == {
        "Black_1": (1,),
        "Sooty_2": (0,),
        "Sooty_4": (0,),
    }


UNUSABLE = [
    ({"train_test_split": "2 1\n4 0\n"}, "train_test_split.txt: there is no line for image 1 of images.txt"),
    ({"image_class_labels": "2 2\n4 2\n"}, "image_class_labels.txt: there is no line for image 1 of images.txt"),
    ({"bounding_boxes": "4 2 3 10 20\n"}, "bounding_boxes.txt: there is no line for image 1 of images.txt"),
    (
        {"image_class_labels": "1 7\n2 2\n4 2\n"},
        "image_class_labels.txt: image 1 has the class 7, which is not in classes.txt",
    ),
    ({"bounding_boxes": "1 8 4 0 12\n4 2 3 10 20\n"}, r"image 1, .*Black_1.jpg: the box \(8, 4, 0, 12\) has no area"),
    ({"bounding_boxes": "1 40 4 8 12\n4 2 3 10 20\n"}, r"Black_1.jpg: nothing of the box \(40, 4, 48, 16\) lies in"),
    ({"images": "1 a/none.jpg\n4 002.Sooty_Albatross/Sooty_4.jpg\n"}, "none.jpg: images.txt lists it, but it is not"),
]


@pytest.mark.parametrize(("lists", "message"), UNUSABLE)
def test_an_image_that_is_not_usable_is_named_or_left_out(tmp_path: Path, lists: dict[str, str], message: str) -> None:
    make_cub(tmp_path, **lists)
    with pytest.raises(InputError, match=message):
        next(iter(make_module(tmp_path).val_dataloader()))
    skipping = make_module(tmp_path, on_error="skip")
    with pytest.warns(UserWarning, match=message):
        assert [batch["id"] for batch in skipping.val_dataloader()] == [["Sooty_4"]]


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    make_masks(make_cub(tmp_path).parent / "segmentations")
    (tmp_path / "segmentations" / "001.Black_footed_Albatross" / "Black_1.png").unlink()
    with pytest.raises(InputError, match=r"Black_1.png: images.txt lists it, but it is not there"):
        cub_records(tmp_path, "val")


@pytest.mark.parametrize("name", sorted(LISTS))
def test_a_missing_list_is_named(tmp_path: Path, name: str) -> None:
    (make_cub(tmp_path) / name).unlink()
    with pytest.raises(InputError, match=rf"{name}: the file is missing; unpack CUB_200_2011.tgz again"):
        cub_records(tmp_path, "val")


def test_a_list_that_is_not_text_is_named(tmp_path: Path) -> None:
    (make_cub(tmp_path) / "images.txt").write_bytes(b"1 \xff\n")
    with pytest.raises(InputError, match=r"images.txt: the file is not UTF-8 text"):
        cub_records(tmp_path, "val")


def test_a_missing_dataset_is_told_what_is_expected(tmp_path: Path) -> None:
    for look in (lambda: cub_records(tmp_path, "val"), lambda: make_module(tmp_path).class_names):
        with pytest.raises(InputError, match=r"There is no CUB-200-2011 in .*: expected CUB_200_2011/images.txt"):
            look()
    with pytest.raises(InputError, match="split is 'valid'; choose one of train, val, test"):
        cub_records(tmp_path, "valid")  # type: ignore[arg-type]


def test_only_what_is_missing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, root: str, md5: str) -> None:
        asked.append((url.rsplit("/", 1)[-1], root, md5))

    monkeypatch.setattr(cub_module, "download_and_extract_archive", fetch)
    make_module(tmp_path).prepare_data()
    assert not asked
    make_module(tmp_path, download=True).prepare_data()
    assert [name for name, *_ in asked] == ["CUB_200_2011.tgz", "segmentations.tgz"]
    assert asked[0][1:] == (str(tmp_path), "97eceeb196236b17998738112f37df78")
    folder = make_cub(tmp_path)
    asked.clear()
    download_cub(folder)  # the folder itself as the root: masks go beside it
    assert [(name, root) for name, root, _ in asked] == [("segmentations.tgz", str(tmp_path))]


def test_without_network_the_archive_and_its_place_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(cub_module, "download_and_extract_archive", fail)
    with pytest.raises(InputError, match=r"CUB_200_2011.tgz cannot be downloaded \(.*no route to host.*unpack it in"):
        make_module(tmp_path, download=True).prepare_data()


def test_names_of_the_list_are_found_in_either_form_of_their_accents(tmp_path: Path) -> None:
    lists = {"images": LISTS["images.txt"].replace("Sooty_2", NFC).replace("Sooty_4", NFD)}
    folder = make_cub(tmp_path, **lists)
    for name, form in (("Sooty_2", NFD), ("Sooty_4", NFC)):
        image = folder / "images" / "002.Sooty_Albatross" / f"{name}.jpg"
        image.rename(image.with_name(f"{form}.jpg"))
    assert len(cub_records(tmp_path, "train") + cub_records(tmp_path, "test")) == 3


def test_a_pipe_in_the_place_of_a_list_or_an_image_is_named(tmp_path: Path) -> None:
    folder = make_cub(tmp_path)
    for path in (folder / "images" / "001.Black_footed_Albatross" / "Black_1.jpg", folder / "bounding_boxes.txt"):
        path.unlink()
        make_pipe(path)
        with pytest.raises(InputError, match=path.name):
            cub_records(tmp_path, "test")
