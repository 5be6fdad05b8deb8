"""The batch contract: stacking, and regions that are right to the pixel."""

import torch

from litcam.data import Batch, box_regions, boxes_of, collate, mask_regions


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
