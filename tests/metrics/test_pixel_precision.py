"""PxAP against an oracle that thresholds all maps a thousand times, and against numbers done by hand."""

import localization_oracles as oracle
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from litcam.errors import InputError
from litcam.heatmaps import upsample
from litcam.metrics import PxAP

COUNTS = ("num_images", "num_degenerate", "num_without_region")


def random_case(count: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth maps, the last on the thousandths themselves, with random regions and void pixels."""
    generator = torch.Generator().manual_seed(6)
    heatmaps = upsample(torch.rand(count, 3, 4, generator=generator), (20, 24)).double()
    heatmaps[-1] = (heatmaps[-1] * 1000).round() / 1000
    regions = torch.rand(count, 20, 24, generator=generator) < heatmaps
    valid = torch.rand(count, 20, 24, generator=generator) > 0.2
    return heatmaps, regions, valid


def computed(metric: PxAP) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("with_void", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_area_equals_the_oracle(with_void: bool, dtype: torch.dtype) -> None:
    heatmaps, regions, valid = random_case()
    heatmaps = heatmaps.to(dtype)
    metric = PxAP()
    metric.update(heatmaps, regions, valid if with_void else None)
    counted = valid if with_void else torch.ones_like(valid)
    expected = oracle.pxap(heatmaps.double().numpy(), regions.numpy(), counted.numpy())
    assert computed(metric)["pxap"] == pytest.approx(expected, abs=1e-9)


def test_of_maps_with_a_thousand_values_it_is_the_average_precision_of_scikit_learn() -> None:
    heatmaps, regions, _ = random_case()
    heatmaps = (heatmaps * 1000).round() / 1000
    metric = PxAP()
    metric.update(heatmaps, regions)
    expected = average_precision_score(regions.flatten(), heatmaps.flatten())
    assert computed(metric)["pxap"] == pytest.approx(expected, abs=1e-9)


def test_a_case_done_by_hand() -> None:
    """Of three true pixels one has 1, and two share a bin with a false one: 1/3 · 1 + 2/3 · 3/5."""
    heatmap = torch.tensor([[[1.0, 0.9994, 0.3002], [0.3, 0.3009, 0.0]]])
    region = torch.tensor([[[True, False, True], [False, True, False]]])
    metric = PxAP()
    metric.update(heatmap, region)
    assert computed(metric)["pxap"] == pytest.approx(1 / 3 + 2 / 3 * 3 / 5)
    void = torch.ones_like(region)
    void[0, 0, 1] = False
    without = PxAP()
    without.update(heatmap, region, void)
    assert computed(without)["pxap"] == pytest.approx(1 / 3 + 2 / 3 * 3 / 4)


def test_a_perfect_map_has_one_and_an_inverted_one_the_share_of_the_region() -> None:
    region = torch.zeros(1, 4, 5, dtype=torch.bool)
    region[0, 1:3] = True
    for heatmap, expected in ((region, 1.0), (~region, 0.5)):
        metric = PxAP()
        metric.update(heatmap.float(), region)
        assert computed(metric)["pxap"] == expected


def test_batches_of_any_size_and_merged_halves_give_the_same() -> None:
    heatmaps, regions, valid = random_case()
    together, apart, other = PxAP(), PxAP(), PxAP()
    together.update(heatmaps, regions, valid)
    for metric, part in ((apart, slice(0, 1)), (apart, slice(1, 1)), (apart, slice(1, 3)), (other, slice(3, 6))):
        metric.update(heatmaps[part], regions[part], valid[part])
    assert computed(other)["pxap"] != pytest.approx(computed(together)["pxap"], abs=1e-3)
    apart.merge_state(other)
    assert computed(apart) == computed(together)


def test_what_says_nothing_is_counted_and_left_out() -> None:
    heatmaps, regions, valid = random_case()
    expected = PxAP()
    expected.update(heatmaps[:2], regions[:2], valid[:2])
    heatmaps[2] = 0.5
    heatmaps[3, 0, 0] = float("nan")
    regions[4] = False
    valid[5] &= ~regions[5]  # of its region all is void
    metric = PxAP()
    metric.update(heatmaps, regions, valid)
    scores = computed(metric)
    assert [scores[count] for count in COUNTS] == [2, 2, 2]
    assert scores["pxap"] == computed(expected)["pxap"]


def test_without_images_the_score_is_nan_and_not_zero() -> None:
    metric = PxAP()
    metric.update(torch.zeros(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool))
    scores = metric.compute()
    assert scores["pxap"].isnan()
    assert scores["num_degenerate"] == 2


@pytest.mark.parametrize(
    ("heatmaps", "regions", "valid", "message"),
    [
        (torch.rand(2, 4), torch.ones(2, 4).bool(), None, "heatmaps have to be a float tensor"),
        (torch.rand(2, 4, 4), torch.ones(2, 4, 4), None, "regions have to be bool"),
        (torch.rand(2, 4, 4), torch.ones(2, 4, 4).bool(), torch.ones(2, 4, 4), "valid has to be bool"),
        (torch.eye(4)[None] * 2, torch.ones(1, 4, 4).bool(), None, r"lie in \[0, 1\], but hold 2; scale them"),
    ],
)
def test_wrong_input_is_named(heatmaps: Tensor, regions: Tensor, valid: Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PxAP().update(heatmaps, regions, valid)
