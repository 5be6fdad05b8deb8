"""PASCAL VOC 2012: the rule of one class, multi-hot labels, difficult objects, class masks, and where the data are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from folder_cases import NFC, NFD, make_pipe
from picture_cases import CONFIG, filled, save_mask, save_picture
from test_annotations import voc_file, voc_object

from litcam.data import VOC2012DataModule, voc
from litcam.errors import InputError

SIZE = (80, 60)
FIRST, SECOND = (16, 12, 44, 40), (50, 8, 74, 52)
CAT, DOG, PERSON = 7, 11, 14


def inclusive(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    return x0 + 1, y0 + 1, x1, y1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A VOC of five images: of one class, of two, with a difficult object of another class, and two without mask."""
    base = tmp_path / "VOCdevkit" / "VOC2012"
    objects = {
        "cats": [voc_object("cat", inclusive(FIRST)), voc_object("cat", inclusive(SECOND))],
        "both": [voc_object("dog", inclusive(FIRST)), voc_object("person", inclusive(SECOND))],
        "hard": [voc_object("cat", inclusive(FIRST)), voc_object("person", inclusive(SECOND), difficult=1)],
        "bare": [voc_object("dog", inclusive(FIRST))],
        "dogs": [voc_object("dog", inclusive(FIRST))],
    }
    for name, described in objects.items():
        save_picture(base / "JPEGImages" / f"{name}.jpg", SIZE, FIRST, SECOND)
        voc_file(base / "Annotations" / f"{name}.xml", *described)
    masks = base / "SegmentationClass"
    save_mask(masks / "cats.png", SIZE, (FIRST, CAT + 1), (SECOND, CAT + 1), ((0, 0, 4, 4), 255))
    save_mask(masks / "both.png", SIZE, (FIRST, DOG + 1), (SECOND, PERSON + 1))
    save_mask(masks / "hard.png", SIZE, (FIRST, CAT + 1), (SECOND, PERSON + 1))
    for kind, names in (("Main", list(objects)), ("Segmentation", ["cats", "both", "hard"])):
        (base / "ImageSets" / kind).mkdir(parents=True)
        for split in ("train", "val"):
            (base / "ImageSets" / kind / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return tmp_path


def make_module(root: Path, **arguments: Any) -> VOC2012DataModule:
    module = VOC2012DataModule(str(root), **{"eval_resize": "squash", "batch_size": 8, "num_workers": 0, **arguments})
    module.use_data_config(CONFIG)
    return module


def labels(module: VOC2012DataModule) -> dict[str, tuple[int, ...]]:
    return {record.id: record.labels for record in module.records("val")}


def test_the_single_label_rule_takes_images_of_exactly_one_class(root: Path) -> None:
    assert labels(make_module(root)) == {"cats": (CAT,), "bare": (DOG,), "dogs": (DOG,)}
    assert labels(make_module(root, difficult=False)) == {
        "cats": (CAT,),
        "hard": (CAT,),
        "bare": (DOG,),
        "dogs": (DOG,),
    }


def test_multi_label_takes_all_images(root: Path) -> None:
    expected = {"cats": (CAT,), "both": (DOG, PERSON), "hard": (CAT, PERSON), "bare": (DOG,), "dogs": (DOG,)}
    assert labels(make_module(root, multi_label=True)) == expected
    assert labels(make_module(root, multi_label=True, difficult=False)) == {**expected, "hard": (CAT,)}
    batch = next(iter(make_module(root, multi_label=True).val_dataloader()))
    assert batch["label"].shape == (5, 20)
    assert batch["label"].nonzero().tolist() == [
        [0, CAT],
        [1, DOG],
        [1, PERSON],
        [2, CAT],
        [2, PERSON],
        [3, DOG],
        [4, DOG],
    ]


def test_the_segmentation_list_has_masks_only(root: Path) -> None:
    assert list(labels(make_module(root, split_list="segmentation", multi_label=True))) == ["cats", "both", "hard"]


def test_a_batch_has_every_box_of_the_class_and_the_mask_of_its_pixels(root: Path) -> None:
    batch = next(iter(make_module(root).val_dataloader()))
    assert batch["label"].tolist() == [CAT, DOG, DOG]
    assert batch["instance_labels"].tolist() == [CAT, CAT, DOG, DOG]
    regions = filled(batch["boxes"][:2, 1:], (48, 48))
    assert torch.equal(batch["mask"][0] == 1, regions.any(0))
    assert batch["mask"][0].unique().tolist() == [0, 1, 255]
    assert (batch["mask"][1:] == 255).all()  # no mask is known


def test_objects_that_do_not_count_are_background(root: Path) -> None:
    module = make_module(root, difficult=False)
    sample = module.dataset("val")[1]
    assert sample["id"] == "hard"
    assert sample["instance_labels"].tolist() == [CAT]
    assert torch.equal(sample["mask"] == 1, filled(sample["boxes"], (48, 48))[0])
    assert sample["mask"].unique().tolist() == [0, 1]


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_root_may_be_any_folder_of_the_layout(root: Path, place: str) -> None:
    assert len(make_module(root / place).records("train")) == 3


def test_missing_images_and_annotations_are_named_or_counted(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    (base / "JPEGImages" / "cats.jpg").unlink()
    with pytest.raises(InputError, match=r"cats.jpg: the image is listed, but is not there"):
        make_module(root).records("val")
    (base / "Annotations" / "bare.xml").unlink()
    voc_file(base / "Annotations" / "both.xml", voc_object("emu"))
    module = make_module(root, on_error="skip")
    assert labels(module) == {"dogs": (DOG,)}
    assert [message.split(": ", 1)[1] for message in module.left_out] == [
        "the image is listed, but is not there",
        "VOC 2012 has no class emu",
        "the file does not exist",
    ]


def test_an_image_of_another_size_than_its_annotation_is_named(root: Path) -> None:
    save_picture(root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "cats.jpg", (60, 80))
    with pytest.raises(InputError, match=r"cats.jpg: the image is 60 by 80, but its annotation says 80 by 60"):
        make_module(root).dataset("val")[0]


def test_a_missing_dataset_list_or_split_is_named(tmp_path: Path, root: Path) -> None:
    with pytest.raises(InputError, match=r"There is no PASCAL VOC 2012 in .*: expected VOCdevkit/VOC2012 with"):
        make_module(tmp_path / "nowhere").records("train")
    (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Main" / "val.txt").unlink()
    with pytest.raises(InputError, match=r"val.txt is missing"):
        make_module(root).records("val")
    with pytest.raises(InputError, match="VOC2012DataModule has no test split; it has train, val"):
        make_module(root).test_dataloader()
    with pytest.raises(InputError, match="split_list is 'all'; choose one of main, segmentation"):
        make_module(root, split_list="all")


def test_the_archive_is_fetched_only_if_it_is_wanted_and_not_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, str, str]] = []
    monkeypatch.setattr(
        voc, "download_and_extract_archive", lambda url, to, filename, md5: calls.append((url, to, md5))
    )
    make_module(root, download=True).prepare_data()
    make_module(tmp_path / "new").prepare_data()
    assert calls == []
    make_module(tmp_path / "new", download=True).prepare_data()
    ((url, to, md5),) = calls
    assert url.endswith("VOCtrainval_11-May-2012.tar")
    assert to == str(tmp_path / "new")
    assert md5 == "6cd6e144f989b92b3379bac3b3de84fd"


def test_without_network_the_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(voc, "download_and_extract_archive", fail)
    with pytest.raises(InputError, match=r"could not be downloaded \(no route to host\); fetch https.* and unpack"):
        make_module(tmp_path / "new", download=True).prepare_data()


def test_names_of_the_lists_are_found_in_either_form_of_their_accents(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    for folder, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
        (base / folder / f"cats.{suffix}").rename(base / folder / f"{NFD}.{suffix}")
    (base / "ImageSets" / "Segmentation" / "val.txt").write_text(f"{NFC}\n", encoding="utf-8")
    [record] = make_module(root, split_list="segmentation").records("val")
    assert record.id == NFC
    assert record.boxes
    assert record.mask


def test_a_pipe_in_the_place_of_an_image_or_its_annotation_is_named(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    for path, message in (
        (base / "JPEGImages" / "bare.jpg", "bare.jpg"),
        (base / "Annotations" / "dogs.xml", "dogs.xml"),
    ):
        path.unlink()
        make_pipe(path)
        module = make_module(root, on_error="skip")
        assert len(list(module.usable_records("val"))) < 3
        assert f"{message}: the file cannot be opened (it is a named pipe, no regular file)" in str(module.left_out)
