"""The batch contract: stacking, and regions that are right to the pixel."""

import pytest
import torch

from litcam.data import Batch, DigitScenes, SceneStyle, box_regions, boxes_of, collate, mask_regions
from litcam.data.batch import class_regions, present_classes, read_batch, regions_of, true_regions
from litcam.errors import InputError


def batch_of(*boxes: list[list[float]], size: tuple[int, int] = (6, 8)) -> Batch:
    samples = [
        {"image": torch.zeros(3, *size), "label": 0, "boxes": torch.tensor(own).reshape(-1, 4), "id": str(index)}
        for index, own in enumerate(boxes)
    ]
    return collate(samples)  # type: ignore[return-value]


def test_boxes_find_their_image_again() -> None:
    batch = batch_of([[0, 0, 2, 2]], [], [[1, 1, 3, 3], [4, 4, 6, 6]])
    assert [len(boxes_of(batch, index)) for index in range(3)] == [1, 0, 2]
    assert boxes_of(batch, 2).tolist() == [[1, 1, 3, 3], [4, 4, 6, 6]]
    assert batch["id"] == ["0", "1", "2"]


def test_regions_are_the_union_of_the_filled_boxes_with_exclusive_ends() -> None:
    regions = box_regions(batch_of([[1, 0, 4, 2], [3, 1, 5, 3]], []))
    expected = torch.zeros(2, 6, 8, dtype=torch.bool)
    expected[0, 0:2, 1:4] = True
    expected[0, 1:3, 3:5] = True
    assert torch.equal(regions, expected)


def test_boxes_are_cut_at_the_border_and_empty_ones_cover_nothing() -> None:
    regions = box_regions(batch_of([[-5, -5, 2, 1], [3, 3, 3, 5], [7, 5, 99, 99]]))
    assert regions[0].nonzero().tolist() == [[0, 0], [0, 1], [5, 7]]


def test_void_and_background_are_outside_the_mask_region() -> None:
    mask = torch.tensor([[[0, 1, 2], [255, 0, 1]]], dtype=torch.uint8)
    batch = Batch(image=torch.zeros(1, 3, 2, 3), label=torch.zeros(1), boxes=torch.zeros(0, 5), mask=mask, id=["a"])
    assert mask_regions(batch).tolist() == [[[False, True, True], [False, False, True]]]


def two_class_scenes(count: int = 12) -> Batch:
    scenes = DigitScenes("val", style=SceneStyle(classes=2))
    return collate([scenes[index] for index in range(count)])  # type: ignore[return-value]


def by_hand() -> Batch:
    """Two images: instances of classes 4, 7 and 4, and a pixel of void; then one of class 7."""
    return Batch(
        image=torch.zeros(2, 3, 3, 3),
        label=torch.tensor([4, 7]),
        boxes=torch.tensor([[0, 0, 0, 2, 1], [0, 2, 0, 3, 3], [0, 0, 1, 3, 2], [1, 1, 1, 3, 2]]).float(),
        instance_labels=torch.tensor([4, 7, 4, 7]),
        mask=torch.tensor([[[1, 1, 2], [3, 3, 3], [0, 255, 2]], [[0, 0, 0], [0, 1, 1], [0, 0, 0]]], dtype=torch.uint8),
        id=["a", "b"],
    )


def test_labels_of_instances_stand_row_for_row_beside_the_boxes() -> None:
    scenes = DigitScenes("val", style=SceneStyle(classes=2))
    samples = [scenes[index] for index in range(5)]
    batch = collate(samples)
    assert batch["label"].shape == (5, 10)
    assert batch["label"].dtype == torch.bool
    for index, sample in enumerate(samples):
        own = batch["boxes"][:, 0] == index
        assert torch.equal(batch["instance_labels"][own], sample["instance_labels"])


def test_the_region_of_a_class_in_a_case_done_by_hand() -> None:
    classes = torch.tensor([[4, 7], [4, 7]])
    boxes = class_regions(by_hand(), classes)
    assert boxes.shape == (2, 2, 3, 3)
    assert boxes.int().tolist() == [
        [[[1, 1, 0], [1, 1, 1], [0, 0, 0]], [[0, 0, 1], [0, 0, 1], [0, 0, 1]]],
        [[[0, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 1], [0, 0, 0]]],
    ]
    pixels = class_regions(by_hand(), classes, "masks")
    assert pixels.int().tolist() == [
        [[[1, 1, 0], [1, 1, 1], [0, 0, 0]], [[0, 0, 1], [0, 0, 0], [0, 0, 1]]],
        [[[0, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 1], [0, 0, 0]]],
    ]


@pytest.mark.parametrize(("regions", "of_all"), [("boxes", box_regions), ("masks", mask_regions)])
def test_the_classes_of_an_image_make_up_its_whole_region(regions: str, of_all: object) -> None:
    batch = two_class_scenes()
    own = class_regions(batch, present_classes(batch), regions)  # type: ignore[arg-type]
    assert own.flatten(2).any(2).all()
    assert torch.equal(own.any(1), of_all(batch))  # type: ignore[operator]


def test_a_class_that_is_not_there_has_an_empty_region_and_one_asked_for_twice_has_it_twice() -> None:
    batch = two_class_scenes()
    absent = (~batch["label"]).int().argmax(1)
    present = present_classes(batch)[:, 1]
    regions = class_regions(batch, torch.stack([absent, present, present], 1), "masks")
    assert not regions[:, 0].any()
    assert torch.equal(regions[:, 1], regions[:, 2])


def test_images_without_instances_have_empty_class_regions() -> None:
    batch = batch_of([], [])
    batch["instance_labels"] = torch.zeros(0, dtype=torch.int64)
    batch["mask"] = torch.zeros(2, 6, 8, dtype=torch.uint8)
    for regions in ("boxes", "masks"):
        assert not class_regions(batch, torch.zeros(2, 3, dtype=torch.int64), regions).any()


def test_the_present_classes_are_those_of_the_label() -> None:
    labels = torch.zeros(2, 10, dtype=torch.bool)
    labels[0, [8, 3]] = labels[1, [0, 9]] = True
    batch = {**by_hand(), "label": labels}
    assert present_classes(batch).tolist() == [[3, 8], [0, 9]]  # type: ignore[arg-type]
    assert present_classes(by_hand()).tolist() == [[4], [7]]
    labels[1, 5] = True
    with pytest.raises(InputError, match="The images have 2 to 3 classes"):
        present_classes(batch)  # type: ignore[arg-type]


def test_what_class_regions_cannot_use_is_named() -> None:
    with pytest.raises(InputError, match="no 'instance_labels'"):
        class_regions(batch_of([[0, 0, 2, 2]]), torch.tensor([[0]]))
    with pytest.raises(InputError, match=r"classes have to be \[B, K\], one row for each image, not \[2\]"):
        class_regions(by_hand(), torch.tensor([4, 7]))
    with pytest.raises(InputError, match="regions is 'mask'"):
        class_regions(by_hand(), torch.tensor([[4], [7]]), "mask")  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "of_all"), [("boxes", box_regions), ("masks", mask_regions)])
def test_the_true_region_of_a_single_label_is_the_images_whatever_the_class(kind: str, of_all: object) -> None:
    batch, images = by_hand(), torch.tensor([1, 0, 0])
    for classes in (torch.tensor([7, 4, 7]), torch.tensor([0, 1, 2])):
        assert torch.equal(true_regions(batch, images, classes, kind), of_all(batch)[images])  # type: ignore[arg-type, operator]


@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_the_true_region_among_several_labels_is_that_of_the_class(kind: str) -> None:
    batch = two_class_scenes(6)
    images = torch.tensor([5, 0, 3])
    classes = present_classes(batch)[images, torch.tensor([1, 0, 1])]
    regions = true_regions(batch, images, classes, kind)  # type: ignore[arg-type]
    assert regions is not None
    assert torch.equal(regions, regions_of(batch, images, classes, kind))  # type: ignore[arg-type]
    assert (regions < (box_regions if kind == "boxes" else mask_regions)(batch)[images]).any()


def test_there_is_no_true_region_without_annotation() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    bare = collate([{"image": torch.zeros(3, 6, 8), "label": 0, "id": "a"}])
    assert true_regions(bare, none, none, "boxes") is None  # type: ignore[arg-type]
    assert true_regions(batch_of([]), none, none, "masks") is None
    with pytest.raises(InputError, match="kind is 'mask'; choose one of boxes, masks"):
        true_regions(by_hand(), none, none, "mask")  # type: ignore[arg-type]


def test_multi_hot_labels_reach_only_those_who_ask_for_them() -> None:
    batch = two_class_scenes(8)
    message = r"label has to be class indices \[B\], not torch.bool \[8, 10\]"
    with pytest.raises(InputError, match=message):
        read_batch(batch)
    assert read_batch(batch, multi_label=True) is batch
    assert read_batch(by_hand(), multi_label=True)["label"].tolist() == [4, 7]
    with pytest.raises(InputError, match=r"or multi-hot bool \[B, C\], not torch.float32 \[8, 10\]"):
        read_batch({**batch, "label": batch["label"].float()}, multi_label=True)
