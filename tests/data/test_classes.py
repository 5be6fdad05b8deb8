"""Classes matched by name, and every class index of a sample taken to the model's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from picture_cases import CONFIG, Pictures, filled, save_mask, save_picture
from test_cub import make_cub
from torch.utils.data import Dataset

from litcam.data import CUB200DataModule, DigitScenesDataModule, FolderDataModule, ImageNetDataModule, Record
from litcam.data.classes import Classes, match_classes
from litcam.errors import InputError

SYNSETS = {"n01440764": "tench", "n02012849": "crane (n02012849)", "n03126707": "crane (n03126707)"}


def model_of(names: list[str], ids: list[str] | None = None) -> Any:
    """What a data module asks of a model."""
    return SimpleNamespace(class_names=names, class_ids=ids, hparams={"num_classes": len(names)}, data_config=CONFIG)


def indices(data: Classes, model: Classes) -> list[int | None]:
    return list(match_classes(data, model).indices)


@pytest.mark.parametrize(
    ("data", "model", "expected"),
    [
        (["cat", "dog"], ["cat", "dog"], [0, 1]),
        (["dog", "cat"], ["cat", "dog"], [1, 0]),
        (["Cat", "dog "], ["cat", "dog"], [None, None]),
        (["cafe\u0301"], ["bar", "caf\u00e9"], [1]),
        (["001.Laysan_Albatross", "002.Auk"], ["001.Black_footed_Albatross", "002.Laysan_Albatross"], [1, None]),
        (["Laysan Albatross"], ["001.Auk", "002.Laysan_Albatross"], [1]),
        (["1.5mm", "2.5mm"], ["2.5mm", "5mm"], [None, 0]),
        (["001.5mm"], ["002.5mm"], [None]),
        (["001.Auk", "002.Auk"], ["003.Auk"], [None, None]),
    ],
)
def test_classes_are_matched_by_name_and_never_by_place_or_number(
    data: list[str], model: list[str], expected: list[int | None]
) -> None:
    assert indices(Classes.named(data), Classes.named(model)) == expected


def test_synsets_tell_classes_apart_and_words_only_where_there_are_no_synsets() -> None:
    model = Classes.named(list(SYNSETS.values()), list(SYNSETS))
    # Alone, a crane needs no synset in its name.
    assert indices(Classes.named(["crane"], ["n03126707"]), model) == [2]
    assert indices(Classes.named(["tench"], ["n99999999"]), model) == [None]
    assert indices(Classes.named(["n02012849", "tench", "crane"]), model) == [1, 0, None]
    assert indices(Classes.named(["tench"], ["n01440764"]), Classes.named(["cat", "tench"])) == [1]


def test_the_sentence_names_what_is_called_otherwise() -> None:
    found = match_classes(Classes.named(["001.Laysan_Albatross", "Auk"]), Classes.named(["Auk", "Laysan Albatross"]))
    assert found.sentence() == (
        "Classes are matched by name: the data have 2 of the model's 2, in another order, "
        "001.Laysan_Albatross is the model's Laysan Albatross."
    )
    assert match_classes(Classes.named(["a", "b"]), Classes.named(["a", "b"])).sentence() == ""


def test_two_classes_of_the_same_name_are_refused() -> None:
    class Cranes(DigitScenesDataModule):
        class_names = property(lambda data: ["crane", "dog", "crane"])  # type: ignore[assignment]

    with pytest.raises(InputError, match="Several classes of the data have the name 'crane'"):
        Cranes(num_workers=0).dataset("val")


def test_many_classes_are_named_in_a_sentence_that_can_be_read() -> None:
    found = match_classes(Classes.named([f"data {i}" for i in range(50)]), Classes.named(["cat"]))
    assert len(found.unknown_sentence(found.unknown)) < 250
    assert "(50 in all)" in found.unknown_sentence(found.unknown)


def samples(module: Any, split: str = "val") -> list[Any]:
    dataset: Dataset[Any] = module.dataset(split)
    return [dataset[index] for index in range(len(dataset))]  # type: ignore[arg-type]


LEFT, RIGHT, BELOW = (4, 4, 24, 24), (40, 4, 60, 24), (20, 36, 50, 56)


@pytest.fixture
def scene(tmp_path: Path) -> Record:
    """An image of all three classes, a, b and c, each with its box and its instance in the mask."""
    boxes = (LEFT, RIGHT, BELOW)
    mask = save_mask(tmp_path / "mask.png", (64, 64), *((box, number) for number, box in enumerate(boxes, 1)))
    return Record(save_picture(tmp_path / "0.png", (64, 64)), (0, 1, 2), "0", boxes, (2, 0, 1), mask)


def test_labels_boxes_and_masks_are_of_the_same_classes_in_another_order(scene: Record) -> None:
    module = Pictures([scene], eval_resize="squash")
    module.multi_label = True
    [own] = samples(module)
    module.use_model(model_of(["b", "other", "c", "a"]))
    [sample] = samples(module)
    assert sample["label"].tolist() == [True, False, True, True]
    assert (own["instance_labels"].tolist(), sample["instance_labels"].tolist()) == ([2, 0, 1], [2, 3, 0])
    assert torch.equal(sample["boxes"], own["boxes"])
    assert torch.equal(sample["mask"], own["mask"])
    assert module.label_names == ["b", "other", "c", "a"]


def test_unknown_classes_leave_an_image_with_their_boxes_and_pixels(scene: Record, tmp_path: Path) -> None:
    alone = Record(save_picture(tmp_path / "1.png", (64, 64)), (2,), "1", (LEFT,), (2,), scene.mask)
    module = Pictures([alone, scene], eval_resize="squash")
    module.multi_label = True
    module.use_model(model_of(["b", "a"]))
    with pytest.raises(InputError, match="The model does not know the class 'c'; it knows b, a"):
        module.dataset("val")
    module.use_model(model_of(["b", "a"]), "skip")
    [sample] = samples(module)
    left_out = module.left_out_classes("val")
    assert (sample["id"], left_out.images, left_out.classes) == ("0", 1, {"c": 2})
    assert sample["label"].tolist() == [True, True]
    assert sample["instance_labels"].tolist() == [1, 0]
    regions = filled(sample["boxes"], (48, 48))
    for number, region in enumerate(regions, 1):
        assert ((sample["mask"] == number) == region).float().mean() > 0.97
    assert set(sample["mask"].unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("classes", [1, 2])
def test_scenes_of_a_model_of_some_digits(classes: int) -> None:
    module = DigitScenesDataModule(num_val=40, classes=classes, num_workers=0)
    own = samples(module)
    module.use_model(model_of(["7", "3", "5", "1"]), "skip")
    kept = {sample["id"]: sample for sample in samples(module)}
    assert 0 < len(kept) < 40
    for sample in own:
        label = torch.as_tensor(sample["label"])
        digits = set(label.nonzero()[:, 0].tolist() if label.ndim else [int(label)])
        known = digits & {7, 3, 5, 1}
        assert (sample["id"] in kept) == bool(known)
        if known:
            changed = kept[sample["id"]]
            found = torch.as_tensor(changed["label"])
            places = found.nonzero()[:, 0].tolist() if found.ndim else [int(found)]
            assert {[7, 3, 5, 1][place] for place in places} == known
            assert {[7, 3, 5, 1][place] for place in changed["instance_labels"].tolist()} == known
            pixels = (changed["mask"] == 1).nonzero().float().mean(0)
            left, top, right, bottom = changed["boxes"][0].tolist()
            assert top < pixels[0] < bottom
            assert left < pixels[1] < right


def test_without_a_map_nothing_is_wrapped_and_without_a_model_nothing_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = DigitScenesDataModule(num_val=2, num_workers=0)
    plain = type(module.dataset("val"))
    module.use_model(model_of(list("0123456789")))
    assert type(module.dataset("val")) is plain
    assert capsys.readouterr().err == ""


def test_cub_by_another_list_of_its_classes_has_the_same_birds(tmp_path: Path) -> None:
    whole = ["Black footed Albatross", "Laysan Albatross", "Sooty Albatross"]
    for number, lists in enumerate(
        (
            {},  # renumbered
            {
                "classes": "1 001.Black_footed_Albatross\n3 003.Sooty_Albatross\n",
                "image_class_labels": "1 1\n2 3\n4 3\n",
            },
        )
    ):
        make_cub(tmp_path / str(number), **lists)
        module = CUB200DataModule(str(tmp_path / str(number)), num_workers=0)
        module.use_model(model_of(whole))
        assert {sample["id"]: sample["label"] for sample in samples(module)} == {"Black_1": 0, "Sooty_4": 2}
        assert [sample["instance_labels"].tolist() for sample in samples(module)] == [[0], [2]]


def test_folders_of_synsets_and_imagenet_are_the_same_classes(tmp_path: Path) -> None:
    for synset in ("n02012849", "n01440764"):
        for split in ("train", "val"):
            save_picture(tmp_path / split / synset / f"{synset}_{split}.JPEG")
    model = model_of(list(SYNSETS.values()), list(SYNSETS))
    for module in (ImageNetDataModule(str(tmp_path), num_workers=0), FolderDataModule(str(tmp_path), num_workers=0)):
        module.use_model(model)
        assert [sample["label"] for sample in samples(module)] == [0, 1]
    imagenet = ImageNetDataModule(str(tmp_path), num_workers=0)
    assert (imagenet.class_names, imagenet.class_ids) == (["tench", "crane"], ["n01440764", "n02012849"])


def test_masks_that_number_the_classes_of_other_data_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):  # taken out of data whose first class was cat
        save_picture(tmp_path / "images" / split / "dog" / "0.png", (64, 64))
        save_mask(tmp_path / "masks" / split / "dog" / "0.png", (64, 64), (LEFT, 2))
    options: dict[str, Any] = {"masks": "../masks", "mask_values": "classes", "num_workers": 0}
    module = FolderDataModule(str(tmp_path / "images"), **options)
    module.use_model(model_of(["cat", "dog"]))
    with pytest.raises(InputError, match=r"the mask shows the classes 2, but not its image's, 1: k is the class"):
        module.dataset("val")[0]  # type: ignore[index]
