"""MaxBoxAcc against an oracle that floods every mask, against OpenCV's components, and against numbers done by hand."""

from collections import Counter

import cv2
import localization_oracles as oracle
import numpy as np
import pytest
import torch
from torch import Tensor

from litcam.errors import InputError
from litcam.heatmaps import upsample
from litcam.metrics import MaxBoxAcc
from litcam.metrics.functional import box_overlaps
from litcam.metrics.functional.components import level_components

COUNTS = ("num_images", "num_degenerate", "num_without_region")
KINDS = ("smooth", "noise", "plateaus", "sparse")


def maps(kind: str, count: int, height: int, width: int) -> Tensor:
    """Random maps: of a few patches, of independent pixels, of five values, or zero in most pixels."""
    generator = torch.Generator().manual_seed(7)
    smooth = upsample(torch.rand(count, 4, 5, generator=generator), (height, width))
    noise = torch.rand(count, height, width, generator=generator)
    return {
        "smooth": smooth,
        "noise": noise,
        "plateaus": (noise * 4).round() / 4,
        "sparse": (2 * smooth - 1).relu() * noise.round(),
    }[kind]


def random_boxes(count: int) -> Tensor:
    """Two boxes in each image of 6 by 9 pixels, the images' boxes mixed."""
    generator = torch.Generator().manual_seed(8)
    rows = []
    for index in [*range(count), *range(count)]:
        x0, y0, width, height = (int(torch.randint(high, (), generator=generator)) for high in (5, 3, 5, 4))
        rows.append([index, x0, y0, x0 + width + 1, y0 + height + 1])
    return torch.tensor(rows, dtype=torch.float32)


def of_image(boxes: Tensor, index: int) -> list[oracle.Box]:
    return [tuple(int(end) for end in box[1:]) for box in boxes if box[0] == index]  # type: ignore[misc]


def computed(metric: MaxBoxAcc) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_overlaps_equal_the_oracle_at_every_threshold(kind: str) -> None:
    heatmaps, boxes = maps(kind, 2, 6, 9), random_boxes(2)
    largest, best = box_overlaps(heatmaps, boxes)
    for index, heatmap in enumerate(heatmaps.double().numpy()):
        expected = oracle.box_overlaps(heatmap, of_image(boxes, index))
        assert largest[index].tolist() == pytest.approx(expected[0], abs=1e-12)
        assert best[index].tolist() == pytest.approx(expected[1], abs=1e-12)


def test_both_accuracies_equal_the_oracle() -> None:
    heatmaps = torch.cat([maps(kind, 2, 6, 9) for kind in KINDS])
    boxes = random_boxes(len(heatmaps))
    metric = MaxBoxAcc()
    metric.update(heatmaps, boxes)
    overlaps = [
        oracle.box_overlaps(heatmap, of_image(boxes, index)) for index, heatmap in enumerate(heatmaps.double().numpy())
    ]
    scores = computed(metric)
    expected = oracle.max_box_acc(overlaps)
    assert 0 < expected[0] < expected[1] < 1
    assert (scores["max_box_acc"], scores["max_box_acc_v2"]) == pytest.approx(expected, abs=1e-9)
    at_threshold = [largest[round(scores["threshold"] * 1000)] >= 0.5 for largest, _ in overlaps]
    assert sum(at_threshold) / len(heatmaps) == pytest.approx(expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_components_of_all_levels_are_those_of_every_mask_alone(kind: str) -> None:
    levels = (maps(kind, 1, 60, 70)[0] * 49).round().long().numpy()
    found = level_components(levels, 50)
    for level in range(50):
        rows = found.levels == level
        _, _, stats, _ = cv2.connectedComponentsWithStats((levels >= level).astype(np.uint8), connectivity=8)
        expected = Counter((x, y, x + w, y + h, area) for x, y, w, h, area in stats[1:].tolist())
        actual = zip(found.boxes[rows].tolist(), found.areas[rows].tolist(), strict=True)
        assert Counter((*box, area) for box, area in actual) == expected


def test_a_case_done_by_hand() -> None:
    """A block of 0.8 on the object, a higher pixel elsewhere: the whole image at 0, the block to 0.8, the pixel on."""
    heatmap = torch.zeros(1, 4, 4)
    heatmap[0, :2, :2] = 0.8
    heatmap[0, 3, 3] = 1.0
    largest, best = box_overlaps(heatmap, torch.tensor([[0.0, 0, 0, 2, 2]]))
    assert largest[0].tolist() == best[0].tolist() == [0.25, *[1.0] * 800, *[0.0] * 199]
    largest, best = box_overlaps(heatmap, torch.tensor([[0.0, 3, 3, 4, 4]]))
    assert largest[0].tolist() == [1 / 16, *[0.0] * 800, *[1.0] * 199]
    assert best[0].tolist() == [1 / 16, *[1.0] * 999]
    largest, _ = box_overlaps(heatmap, torch.tensor([[0.0, 3, 3, 4, 4], [0, 0.5, 0, 2, 2]]))
    assert largest[0, 1:801].tolist() == [0.75] * 800  # the better of two true boxes, one with a fraction


def test_the_largest_component_is_the_one_with_most_pixels_and_diagonals_connect() -> None:
    heatmap = torch.zeros(1, 9, 9)
    heatmap[0, range(5), range(5)] = 1.0  # a box of 25 pixels
    heatmap[0, 6:8, 6:9] = 1.0  # six pixels
    largest, best = box_overlaps(heatmap, torch.tensor([[0.0, 0, 0, 5, 5]]))
    assert largest[0, 1:].tolist() == [0.0] * 999
    assert best[0, 1:].tolist() == [1.0] * 999


def test_one_threshold_has_to_suit_all_images() -> None:
    """The first image needs a threshold up to 0.4, the second one above 0.6: each alone is right, both never are."""
    heatmaps = torch.zeros(2, 6, 6)
    heatmaps[0, :3, :3] = 0.4
    heatmaps[1] = 0.6
    heatmaps[:, 0, 0] = 1.0
    boxes = torch.tensor([[0.0, 0, 0, 3, 3], [1, 0, 0, 1, 1]])
    metric = MaxBoxAcc()
    metric.update(heatmaps, boxes)
    scores = computed(metric)
    assert (scores["max_box_acc"], scores["max_box_acc_v2"]) == (0.5, 0.5)
    assert scores["threshold"] == 0.001


def test_an_overlap_counts_from_the_level_on() -> None:
    """IoU 3/6 at every threshold above 0: right at 0.3 and 0.5, wrong at 0.7."""
    heatmap = torch.zeros(1, 6, 6)
    heatmap[0, 0, :3] = 1.0
    metric = MaxBoxAcc()
    metric.update(heatmap, torch.tensor([[0.0, 0, 0, 6, 1]]))
    scores = computed(metric)
    assert scores["max_box_acc"] == 1.0
    assert scores["max_box_acc_v2"] == pytest.approx(2 / 3)


def test_a_map_that_stays_low_has_no_box_above_its_maximum() -> None:
    heatmap = torch.zeros(1, 3, 3)
    heatmap[0, 1, 1] = 0.5
    _, best = box_overlaps(heatmap, torch.tensor([[0.0, 1, 1, 2, 2]]))
    assert best[0].tolist() == [1 / 9, *[1.0] * 500, *[0.0] * 499]


def test_batches_of_any_size_and_merged_halves_give_the_same() -> None:
    heatmaps = torch.cat([maps("smooth", 3, 6, 9), maps("noise", 3, 6, 9)])
    boxes = random_boxes(6)
    together, apart, other = MaxBoxAcc(), MaxBoxAcc(), MaxBoxAcc()
    together.update(heatmaps, boxes)
    for metric, start, end in ((apart, 0, 1), (apart, 1, 1), (apart, 1, 3), (other, 3, 6)):
        part = boxes[(boxes[:, 0] >= start) & (boxes[:, 0] < end)] - torch.tensor([start, 0, 0, 0, 0])
        metric.update(heatmaps[start:end], part)
    assert computed(other)["max_box_acc_v2"] != pytest.approx(computed(together)["max_box_acc_v2"], abs=1e-3)
    apart.merge_state(other)
    assert computed(apart) == computed(together)


def test_what_says_nothing_is_counted_and_left_out() -> None:
    heatmaps, boxes = maps("smooth", 5, 6, 9), random_boxes(5)
    expected = MaxBoxAcc()
    expected.update(heatmaps[:2], boxes[boxes[:, 0] < 2])
    heatmaps[2] = 0.5
    heatmaps[3, 0, 0] = float("nan")
    metric = MaxBoxAcc()
    metric.update(heatmaps, boxes[boxes[:, 0] != 4])
    scores = computed(metric)
    assert [scores[count] for count in COUNTS] == [2, 2, 1]
    for name in ("max_box_acc", "max_box_acc_v2", "threshold"):
        assert scores[name] == computed(expected)[name]


def test_without_images_the_scores_are_nan_and_not_zero() -> None:
    metric = MaxBoxAcc()
    metric.update(torch.zeros(2, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]))
    metric.update(torch.eye(4)[None], torch.zeros(0, 5))
    scores = metric.compute()
    assert all(scores[name].isnan() for name in ("max_box_acc", "max_box_acc_v2", "threshold"))
    assert [int(scores[count]) for count in COUNTS] == [0, 2, 1]


@pytest.mark.parametrize(
    ("heatmaps", "boxes", "message"),
    [
        (torch.rand(2, 4), torch.zeros(0, 5), "heatmaps have to be a float tensor"),
        (torch.rand(2, 4, 4), torch.zeros(3, 4), r"boxes have to be \[K, 5\] .* not \[3, 4\]"),
        (torch.rand(2, 4, 4), torch.tensor([[2.0, 0, 0, 2, 2]]), "A box names image 2, but the batch has 2, from 0"),
        (torch.rand(2, 4, 4), torch.tensor([[0.5, 0, 0, 2, 2]]), "A box names image 0.5"),
        (torch.rand(2, 4, 4), torch.tensor([[1.0, 3, 0, 2, 2]]), r"A box is \[3.0, 0.0, 2.0, 2.0\]; it has to be x0"),
        (torch.rand(2, 4, 4), torch.tensor([[1.0, 0, float("nan"), 2, 2]]), "A box is .*nan"),
        (torch.eye(4)[None] * 2, torch.zeros(0, 5), r"lie in \[0, 1\], but hold 2; scale them"),
    ],
)
def test_wrong_input_is_named(heatmaps: Tensor, boxes: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        MaxBoxAcc().update(heatmaps, boxes)
