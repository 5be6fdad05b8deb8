"""Segmentation against an oracle that walks over pixels, against scikit-learn, and against numbers done by hand."""

import localization_oracles as oracle
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from litcam.errors import InputError
from litcam.heatmaps import upsample
from litcam.metrics import Segmentation
from litcam.metrics.functional import segmentation

SCORES = ("pixel_accuracy", "miou", "map", "foreground_map")
COUNTS = ("num_images", "num_degenerate", "num_without_region")


def random_case(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth maps, of which the second half has many equal values, with random regions and void pixels."""
    generator = torch.Generator().manual_seed(5)
    heatmaps = upsample(torch.rand(count, 3, 4, generator=generator), (9, 11))
    heatmaps[count // 2 :] = (heatmaps[count // 2 :] * 8).round() / 8
    regions = torch.rand(count, 9, 11, generator=generator) < heatmaps
    valid = torch.rand(count, 9, 11, generator=generator) > 0.2
    return heatmaps, regions, valid


def computed(metric: Segmentation) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("with_void", [False, True])
def test_every_score_equals_the_oracle(with_void: bool) -> None:
    heatmaps, regions, valid = random_case()
    metric = Segmentation()
    metric.update(heatmaps, regions, valid if with_void else None)
    counted = valid if with_void else torch.ones_like(valid)
    expected = oracle.segmentation(heatmaps.double().numpy(), regions.numpy(), counted.numpy())
    scores = computed(metric)
    assert {name: scores[name] for name in SCORES} == pytest.approx(expected, abs=1e-9)


def test_the_average_precisions_are_those_of_scikit_learn() -> None:
    heatmaps, regions, valid = random_case()
    scores = segmentation(heatmaps, regions, valid)
    for index, (heatmap, region, counted) in enumerate(zip(heatmaps.double(), regions, valid, strict=True)):
        values, labels = heatmap[counted], region[counted]
        foreground = average_precision_score(labels, values)
        assert scores["foreground_average_precision"][index].item() == pytest.approx(foreground, abs=1e-9)
        both = average_precision_score(torch.cat([~labels, labels]), torch.cat([1 - values, values]))
        assert scores["average_precision"][index].item() == pytest.approx(both, abs=1e-9)


def test_a_case_done_by_hand() -> None:
    """Mean 0.5, which 0.5 itself does not exceed: found 1 and 0.75, true 1 and 0.5."""
    heatmap, region = torch.tensor([[[1.0, 0.75], [0.5, 0.0], [0.25, 0.5]]]), torch.tensor([[[1, 0], [1, 0], [0, 0]]])
    metric = Segmentation()
    metric.update(heatmap, region.bool())
    scores = computed(metric)
    assert scores["pixel_accuracy"] == pytest.approx(4 / 6)
    assert scores["miou"] == pytest.approx((3 / 5 + 1 / 3) / 2)
    assert scores["foreground_map"] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 4)  # both pixels of 0.5 enter together
    # each pixel twice: the precision is 2/2 at 1, 3/4 at 0.75, 5/8 at 0.5, 6/10 at 0.25
    assert scores["map"] == pytest.approx((2 * 2 / 2 + 3 / 4 + 2 * 5 / 8 + 6 / 10) / 6)
    void = torch.ones_like(region, dtype=torch.bool)
    void[0, 0, 1] = False  # the only false alarm
    without = Segmentation()
    without.update(heatmap, region.bool(), void)
    assert computed(without)["pixel_accuracy"] == pytest.approx(4 / 5)
    assert computed(without)["miou"] == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_iou_is_of_the_whole_dataset_and_precision_of_the_mean_image() -> None:
    heatmaps, regions, _ = random_case(2)
    regions[0] = False
    regions[0, 0, 0] = True
    whole, apart = Segmentation(), [Segmentation(), Segmentation()]
    whole.update(heatmaps, regions)
    for index, metric in enumerate(apart):
        metric.update(heatmaps[index : index + 1], regions[index : index + 1])
    means = {name: sum(computed(metric)[name] for metric in apart) / 2 for name in SCORES}
    assert computed(whole)["map"] == pytest.approx(means["map"], abs=1e-12)
    assert computed(whole)["miou"] != pytest.approx(means["miou"], abs=1e-3)


def test_batches_of_any_size_and_merged_halves_give_the_same() -> None:
    heatmaps, regions, valid = random_case()
    together, apart, other = Segmentation(), Segmentation(), Segmentation()
    together.update(heatmaps, regions, valid)
    for metric, part in ((apart, slice(0, 1)), (apart, slice(1, 1)), (apart, slice(1, 3)), (other, slice(3, 6))):
        metric.update(heatmaps[part], regions[part], valid[part])
    assert computed(other)["miou"] != pytest.approx(computed(together)["miou"], abs=1e-3)
    apart.merge_state(other)
    assert computed(apart) == pytest.approx(computed(together), abs=1e-12)


def test_what_says_nothing_is_counted_and_left_out() -> None:
    heatmaps, regions, valid = random_case()
    expected = Segmentation()
    expected.update(heatmaps[:2], regions[:2], valid[:2])
    heatmaps[2] = 0.5
    heatmaps[3, 0, 0] = float("nan")
    regions[4] = False
    valid[5] &= ~regions[5]  # of its region all is void
    metric = Segmentation()
    metric.update(heatmaps, regions, valid)
    scores = computed(metric)
    assert [scores[count] for count in COUNTS] == [2, 2, 2]
    assert {name: scores[name] for name in SCORES} == pytest.approx(
        {name: computed(expected)[name] for name in SCORES}, abs=1e-12
    )


def test_without_images_the_scores_are_nan_and_not_zero() -> None:
    metric = Segmentation()
    metric.update(torch.zeros(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool))
    scores = metric.compute()
    assert all(scores[name].isnan() for name in SCORES)
    assert scores["num_degenerate"] == 2


@pytest.mark.parametrize(
    ("heatmaps", "regions", "valid", "message"),
    [
        (torch.rand(2, 4), torch.ones(2, 4).bool(), None, "heatmaps have to be a float tensor"),
        (torch.rand(2, 4, 4), torch.ones(2, 4, 4), None, "regions have to be bool"),
        (torch.rand(2, 4, 4), torch.ones(2, 4, 4).bool(), torch.ones(2, 4, 4), "valid has to be bool"),
        (torch.rand(2, 4, 4), torch.ones(2, 4, 4).bool(), torch.ones(1, 4, 4).bool(), r"not torch.bool \[1, 4, 4\]"),
        (torch.eye(4)[None] * 1.5, torch.ones(1, 4, 4).bool(), None, r"lie in \[0, 1\], but hold 1.5; scale them"),
        (torch.eye(4)[None] - 0.25, torch.ones(1, 4, 4).bool(), None, r"lie in \[0, 1\], but hold -0.25"),
    ],
)
def test_wrong_input_is_named(heatmaps: Tensor, regions: Tensor, valid: Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Segmentation().update(heatmaps, regions, valid)
