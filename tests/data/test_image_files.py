"""Image files: what a sample holds, alignment through every default transform, and what happens to bad files."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_cases import Pictures, filled, save_mask, save_picture, truncate
from PIL import Image
from torch import Tensor

from litcam.data import Record, box_regions, class_regions, mask_regions
from litcam.errors import InputError

SIZE = (80, 60)
FIRST, SECOND = (16, 12, 44, 40), (50, 8, 74, 52)


def with_rectangle(folder: Path, **changes: Any) -> Record:
    """A picture of one object, its box and its mask."""
    return replace(
        Record(
            path=save_picture(folder / "one.png", SIZE, FIRST),
            labels=(1,),
            id="one",
            boxes=(FIRST,),
            box_labels=(1,),
            mask=save_mask(folder / "one_mask.png", SIZE, (FIRST, 1)),
        ),
        **changes,
    )


def with_two(folder: Path, **changes: Any) -> Record:
    """A picture of two objects of classes 1 and 2."""
    return replace(
        Record(
            path=save_picture(folder / "two.png", SIZE, FIRST, SECOND),
            labels=(1, 2),
            id="two",
            boxes=(FIRST, SECOND),
            box_labels=(1, 2),
            mask=save_mask(folder / "two_mask.png", SIZE, (FIRST, 1), (SECOND, 2)),
        ),
        **changes,
    )


def light(image: Tensor) -> Tensor:
    return image.float().mean(0) > 125


def plain(folder: Path, count: int) -> list[Record]:
    """Pictures without annotations."""
    return [
        Record(path=save_picture(folder / f"{index}.jpg", SIZE, FIRST), labels=(index % 3,), id=str(index))
        for index in range(count)
    ]


@pytest.mark.parametrize(("split", "resize"), [("train", "crop"), ("val", "crop"), ("val", "squash")])
def test_picture_box_and_mask_stay_aligned_through_every_default_transform(
    tmp_path: Path, split: Any, resize: Any
) -> None:
    module = Pictures([with_two(tmp_path)], eval_resize=resize)
    module.multi_label = True
    dataset = module.dataset(split)
    numbers, shapes = set(), set()
    for epoch in range(60 if split == "train" else 1):
        sample = dataset[epoch]
        assert sample["image"].shape == (3, 48, 48)
        assert sample["image"].dtype == torch.uint8
        boxes, labels = sample["boxes"], sample["instance_labels"].tolist()
        assert len(boxes) == len(labels)
        # A pixel whose centre lies on an edge to the bit belongs to either side.
        least, regions, most = (
            filled(boxes + torch.tensor([-1, -1, 1, 1]) * step, (48, 48)) for step in (-0.01, 0, 0.01)
        )
        for number, label in enumerate(labels, start=1):
            own = sample["mask"] == number
            assert (least[number - 1] <= own).all(), label
            assert (own <= most[number - 1]).all(), label
            numbers.add((number, label))
        assert set(sample["mask"].unique().tolist()) <= {0, *range(1, len(labels) + 1)}
        # The picture is interpolated, the mask is not: they differ by a pixel along the edges, no more.
        inside = torch.nn.functional.max_pool2d(regions.any(0).float()[None], 3, 1, 1)[0] > 0
        core = -torch.nn.functional.max_pool2d(-regions.any(0).float()[None], 3, 1, 1)[0] > 0
        assert not (light(sample["image"]) & ~inside).any()
        assert light(sample["image"])[core].all()
        shapes.add(tuple(boxes.flatten().tolist()))
    assert numbers == (
        {(1, 1), (2, 2), (1, 2)} if split == "train" else {(1, 1), (2, 2)}
    )  # (1, 2): the first was cut off
    assert len(shapes) > 30 or split == "val"


def test_the_box_of_a_squashed_picture_in_numbers(tmp_path: Path) -> None:
    sample = Pictures([with_rectangle(tmp_path)], eval_resize="squash").dataset("val")[0]
    x0, y0, x1, y1 = FIRST
    expected = [x0 * 48 / 80, y0 * 48 / 60, x1 * 48 / 80, y1 * 48 / 60]
    torch.testing.assert_close(sample["boxes"], torch.tensor([expected]), rtol=0, atol=1e-3)
    assert sample["label"] == 1
    assert sample["instance_labels"].tolist() == [1]
    assert sample["id"] == "one"


def test_boxes_are_cut_at_the_border_of_the_picture(tmp_path: Path) -> None:
    record = with_rectangle(tmp_path, boxes=((-5, -9, 40, 30),), mask=None)
    sample = Pictures([record], eval_resize="squash").dataset("val")[0]
    torch.testing.assert_close(sample["boxes"], torch.tensor([[0, 0, 24.0, 24.0]]), rtol=0, atol=1e-3)


def test_keys_are_missing_where_the_dataset_has_no_such_annotation(tmp_path: Path) -> None:
    batch = next(iter(Pictures(plain(tmp_path, 4)).val_dataloader()))
    assert set(batch) == {"image", "label", "id"}
    assert batch["label"].tolist() == [0, 1, 2, 0]


def test_a_picture_without_mask_among_others_is_void_and_without_boxes_has_none(tmp_path: Path) -> None:
    bare = replace(plain(tmp_path, 1)[0], labels=(1,))
    batch = next(iter(Pictures([bare, with_rectangle(tmp_path)]).val_dataloader()))
    assert (batch["mask"][0] == 255).all()
    assert batch["boxes"][:, 0].tolist() == [1]
    assert not box_regions(batch)[0].any()
    assert not mask_regions(batch)[0].any()
    assert mask_regions(batch)[1].any()


def test_multi_label_batches_have_multi_hot_labels_and_the_region_of_each_class(tmp_path: Path) -> None:
    module = Pictures([with_two(tmp_path), with_rectangle(tmp_path)], eval_resize="squash")
    module.multi_label = True
    batch = next(iter(module.val_dataloader()))
    assert batch["label"].tolist() == [[False, True, True], [False, True, False]]
    for kind in ("boxes", "masks"):
        regions = class_regions(batch, torch.tensor([[1, 2], [1, 2]]), kind)  # type: ignore[arg-type]
        assert torch.equal(regions[0], filled(batch["boxes"][:2, 1:], (48, 48)))
        assert regions[1, 0].any()
        assert not regions[1, 1].any()


def test_pixels_of_a_class_mask_belong_to_the_first_box_of_their_class(tmp_path: Path) -> None:
    third = (2, 2, 12, 10)
    mask = save_mask(tmp_path / "m.png", SIZE, (FIRST, 2), (SECOND, 2), (third, 3), ((0, 50, 10, 60), 255))
    record = with_two(
        tmp_path,
        labels=(1, 2),
        boxes=(third, FIRST, SECOND),
        box_labels=(2, 1, 1),
        mask=mask,
        mask_values="classes",
    )
    sample = Pictures([record], eval_resize="squash").dataset("val")[0]
    regions = filled(sample["boxes"], (48, 48))
    assert torch.equal(sample["mask"] == 1, regions[0])
    assert torch.equal(sample["mask"] == 2, regions[1] | regions[2])
    assert (sample["mask"] == 255).any()
    assert not (sample["mask"] == 3).any()


def test_what_a_crop_leaves_of_a_class_without_its_box_is_void(tmp_path: Path) -> None:
    """The mask reaches further than the box: a crop beside the box sees some of it."""
    wide = save_mask(tmp_path / "m.png", SIZE, ((0, 0, 80, 60), 2))
    record = with_rectangle(tmp_path, boxes=((0, 0, 10, 60),), mask=wide, mask_values="classes")
    specs = [{"class_path": "Crop", "init_args": {"x_min": 20, "y_min": 0, "x_max": 68, "y_max": 48}}]
    sample = Pictures([record], eval_transforms=specs).dataset("val")[0]
    assert sample["boxes"].shape == (0, 4)
    assert sample["instance_labels"].shape == (0,)
    assert (sample["mask"] == 255).all()


def test_instances_of_other_classes_than_the_labels_are_background(tmp_path: Path) -> None:
    sample = Pictures([with_two(tmp_path, labels=(2,))], eval_resize="squash").dataset("val")[0]
    assert sample["instance_labels"].tolist() == [2]
    assert torch.equal(sample["mask"] == 1, filled(sample["boxes"], (48, 48))[0])
    assert sample["mask"].unique().tolist() == [0, 1]


@pytest.mark.parametrize("value", [1, 255, 38])
def test_an_object_mask_may_have_any_two_values(tmp_path: Path, value: int) -> None:
    mask = save_mask(tmp_path / "m.png", SIZE, (FIRST, value))
    record = with_rectangle(tmp_path, mask=mask, mask_values="object")
    sample = Pictures([record], eval_resize="squash").dataset("val")[0]
    assert torch.equal(sample["mask"] == 1, filled(sample["boxes"], (48, 48))[0])
    without_box = replace(record, boxes=None, box_labels=())
    again = Pictures([without_box], eval_resize="squash").dataset("val")[0]
    assert "boxes" not in again
    assert torch.equal(again["mask"], sample["mask"])


def images(module: Pictures, epochs: int) -> list[dict[str, Tensor]]:
    """Each epoch's pictures by name."""
    loader = module.train_dataloader()
    result = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        result.append(
            {name: image for batch in loader for name, image in zip(batch["id"], batch["image"], strict=True)}
        )
    return result


def test_workers_and_epochs_draw_different_augmentations_that_follow_from_the_seed(tmp_path: Path) -> None:
    """The same picture many times: all samples of two workers and two epochs differ."""
    path = tmp_path / "same.png"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(160, 200, 3), dtype=np.uint8)).save(path)
    records = [Record(path=path, labels=(0,), id=str(index)) for index in range(16)]
    drawn = images(Pictures(records, num_workers=2), 2)
    everything = [image for epoch in drawn for image in epoch.values()]
    assert len(everything) == 32
    assert len({image.numpy().tobytes() for image in everything}) == 32
    in_one_process = images(Pictures(records), 2)
    for two, one in zip(drawn, in_one_process, strict=True):
        assert list(two) == list(one)
        assert all(torch.equal(two[name], one[name]) for name in one)
    assert not all(
        torch.equal(image, images(Pictures(records, seed=1), 1)[0][name]) for name, image in drawn[0].items()
    )


def test_training_reads_no_annotation_and_draws_the_same_pictures(tmp_path: Path) -> None:
    """The mask file is gone: training does not miss it, evaluation of the training images does."""
    module = Pictures([with_two(tmp_path)])
    module.multi_label = True
    (expected,) = (module.dataset("train")[index] for index in [0])
    (tmp_path / "two_mask.png").unlink()
    (batch,) = module.train_dataloader()
    assert set(batch) == {"image", "label", "id"}
    assert torch.equal(batch["image"][0], expected["image"])
    assert torch.equal(batch["label"][0], expected["label"])
    with pytest.raises(InputError, match=r"two_mask.png: the file does not exist"):
        list(module.evaluation_dataloader("train"))


def test_transforms_of_ones_own_may_look_at_boxes_and_masks(tmp_path: Path) -> None:
    specs = [{"class_path": "RandomSizedBBoxSafeCrop", "init_args": {"height": 48, "width": 48}}]
    (batch,) = Pictures([with_rectangle(tmp_path)], train_transforms=specs).train_dataloader()
    assert len(batch["boxes"]) == 1
    assert (batch["mask"] == 1).any()


def test_every_epoch_has_every_picture_once_in_another_order(tmp_path: Path) -> None:
    first, second = images(Pictures(plain(tmp_path, 12)), 2)
    assert sorted(first) == sorted(second) == sorted(map(str, range(12)))
    assert list(first) != list(second)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_file_is_named_in_one_sentence(tmp_path: Path, num_workers: int) -> None:
    records = plain(tmp_path, 4)
    truncate(records[2].path)
    with pytest.raises(InputError) as error:
        list(Pictures(records, num_workers=num_workers).val_dataloader())
    assert str(error.value).startswith(f"{records[2].path}: the file is damaged (")
    assert str(error.value).endswith("(on_error: skip leaves such files out)")
    assert "\n" not in str(error.value)


def test_skipping_leaves_bad_files_out_of_evaluation_and_lists_them_once(tmp_path: Path) -> None:
    records = plain(tmp_path, 6)
    truncate(records[1].path)
    records[4].path.write_bytes(b"")
    module = Pictures(records, on_error="skip")
    with pytest.warns(UserWarning, match="2 files are left out") as caught:
        names = [name for batch in module.val_dataloader() for name in batch["id"]]
    assert names == ["0", "2", "3", "5"]
    message = str(caught[0].message)
    assert message.count("1.jpg") == message.count("4.jpg") == 1
    assert len(module.left_out) == 2
    module.use_data_config({**module.data_config, "crop_pct": 1.0})  # builds the dataset anew, but does not read again
    assert len(module.dataset("val")) == 4


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.filterwarnings("ignore:left out of the training")
def test_in_training_the_next_readable_picture_takes_the_place_of_a_bad_one(tmp_path: Path, num_workers: int) -> None:
    records = plain(tmp_path, 8)
    truncate(records[3].path)
    truncate(records[4].path)
    module = Pictures(records, on_error="skip", num_workers=num_workers)
    names = sorted(name for batch in module.train_dataloader() for name in batch["id"])
    assert names == ["0", "1", "2", "5", "5", "5", "6", "7"]
    dataset = module.dataset("train")
    assert len(dataset) == 8
    assert dataset.is_bad.nonzero().flatten().tolist() == [3, 4]  # type: ignore[attr-defined]  # seen from here too


def test_a_bad_training_file_is_warned_of_once(tmp_path: Path) -> None:
    records = plain(tmp_path, 3)
    truncate(records[1].path)
    dataset = Pictures(records, on_error="skip").dataset("train")
    with pytest.warns(UserWarning, match="left out of the training") as caught:
        samples = [dataset[index] for index in (1, 4, 7)]
    assert len(caught) == 1
    assert [sample["id"] for sample in samples] == ["2", "2", "2"]


@pytest.mark.filterwarnings("ignore:left out of the training")
def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    records = [replace(record, path=truncate(record.path)) for record in plain(tmp_path, 2)]
    with pytest.raises(InputError, match="None of the 2 images is readable"):
        Pictures(records, on_error="skip").dataset("train")[0]
    with pytest.raises(InputError, match="There is no usable image for val"):
        Pictures(records, on_error="skip").dataset("val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": ((90, 10, 99, 20),)}, r"nothing of the box \(90, 10, 99, 20\) lies in the image of 80 by 60"),
        ({"boxes": ((10, 10, 10, 20),)}, r"nothing of the box \(10, 10, 10, 20\)"),
        ({"boxes": ((float("nan"), 10, 10, 20),)}, "nothing of the box"),
        ({"size": (60, 80)}, "the image is 80 by 60, but its annotation says 60 by 80"),
    ],
)
def test_annotations_that_do_not_fit_their_picture_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    record = with_rectangle(tmp_path, **changes)
    with pytest.raises(InputError, match=f"one.png: {message}"):
        Pictures([record]).dataset("val")[0]
    with pytest.warns(UserWarning, match=message):
        kept = Pictures([record, with_two(tmp_path, labels=(1,))], on_error="skip").dataset("val")
    assert len(kept) == 1  # type: ignore[arg-type]


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    other_size = save_mask(tmp_path / "small.png", (40, 30))
    with pytest.raises(InputError, match=r"small.png: the mask is 40 by 30, but its image 80 by 60"):
        Pictures([with_rectangle(tmp_path, mask=other_size)]).dataset("val")[0]
    too_many = save_mask(tmp_path / "many.png", SIZE, (FIRST, 3))
    with pytest.raises(InputError, match=r"many.png: the mask has an instance 3, but there are 1 boxes"):
        Pictures([with_rectangle(tmp_path, mask=too_many)]).dataset("val")[0]
    colour = save_picture(tmp_path / "colour.png", SIZE, FIRST)
    with pytest.raises(InputError, match=r"colour.png: a mask of mode RGB has no class"):
        Pictures([with_rectangle(tmp_path, mask=colour)]).dataset("val")[0]
    missing = tmp_path / "missing.png"
    with pytest.raises(InputError, match=r"missing.png: the file does not exist"):
        Pictures([with_rectangle(tmp_path, mask=missing)]).dataset("val")[0]


def test_negative_indices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        Pictures(plain(tmp_path, 1)).dataset("val")[-1]


def test_the_split_and_the_number_of_classes_are_checked(tmp_path: Path) -> None:
    module = Pictures(plain(tmp_path, 1))
    with pytest.raises(InputError, match="Pictures has no test split; it has train, val"):
        module.dataset("test")

    class Model:
        hparams = {"num_classes": 7}  # noqa: RUF012
        data_config = module.data_config

    class Trainer:
        lightning_module = Model()

    module.trainer = Trainer()  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"The model has 7 classes, but the data 3: --model.num_classes 3"):
        module.setup()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_error": "ignore"}, "on_error is 'ignore'; choose one of raise, skip"),
        ({"eval_resize": "pad"}, "eval_resize is 'pad'"),
        ({"train_transforms": [{"class_path": "HorizontalFlop"}]}, "train_transforms: albumentations has no transform"),
    ],
)
def test_options_out_of_range_are_named_before_any_file_is_read(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Pictures([], **arguments)


def test_a_training_loader_gives_uint8_batches_that_are_normalised_later(tmp_path: Path) -> None:
    module = Pictures(plain(tmp_path, 8))
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].dtype == torch.uint8
    normalized = module.normalize(batch)["image"]
    np.testing.assert_allclose(normalized.numpy(), batch["image"].numpy() / 127.5 - 1, atol=1e-6)
