"""Similarities of two maps against oracles of one image, written from the formulas, and against cases done by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.stats import spearmanr
from torch import Tensor

from litcam.errors import InputError
from litcam.metrics.functional.similarity import SIMILARITIES, gini, similarity

Map = NDArray[np.float64]


def spearman_oracle(one: Map, other: Map) -> float:
    return float(spearmanr(one.ravel(), other.ravel()).statistic)


def top_iou_oracle(one: Map, other: Map) -> float:
    sets = []
    for values in (one.ravel().tolist(), other.ravel().tolist()):
        k = max(1, round(0.1 * len(values)))
        least = sorted(values, reverse=True)[k - 1]
        sets.append({place for place, value in enumerate(values) if value >= least and value > min(values)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def jensen_shannon_oracle(one: Map, other: Map) -> float:
    p, q = (values.ravel() / values.sum() for values in (one, other))
    total = 0.0
    for a, b in zip(p, q, strict=True):
        mean = (a + b) / 2
        total += sum(0.5 * x * math.log2(x / mean) for x in (a, b) if x > 0)
    assert total == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-9)
    return total


def centroid_shift_oracle(one: Map, other: Map) -> float:
    centres = []
    for values in (one, other):
        height, width = values.shape
        y = sum(values[r, c] * (r + 0.5) / height for r in range(height) for c in range(width)) / values.sum()
        x = sum(values[r, c] * (c + 0.5) / width for r in range(height) for c in range(width)) / values.sum()
        centres.append((y, x))
    return math.dist(*centres)


def gini_oracle(values: Map) -> float:
    """Half the mean absolute difference of two values, as a share of their mean."""
    flat = values.ravel()
    return float(np.abs(flat[:, None] - flat[None, :]).mean() / (2 * flat.mean()))


ORACLES: dict[str, Callable[[Map, Map], float]] = {
    "spearman": spearman_oracle,
    "top_iou": top_iou_oracle,
    "jensen_shannon": jensen_shannon_oracle,
    "centroid_shift": centroid_shift_oracle,
}


def pairs(count: int = 7, height: int = 5, width: int = 8) -> tuple[Tensor, Tensor]:
    """Related maps; some with ties, some sparse, so sparse that fewer than 10 % of their tokens are above zero."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(count, height, width, generator=generator)
    second = 0.6 * first + 0.4 * torch.rand(count, height, width, generator=generator)
    first[1], second[1] = (first[1] * 5).round() / 5, (second[1] * 5).round() / 5
    first[2], second[2] = (first[2] - 0.5).clamp(min=0), (second[2] - 0.5).clamp(min=0)
    first[3], second[3] = torch.zeros(height, width), torch.zeros(height, width)
    first[3, 0, :3] = torch.tensor([1.0, 0.5, 0.2])
    second[3, 0, 2:4] = torch.tensor([0.3, 1.0])
    return first, second


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_every_similarity_equals_its_oracle(name: str, dtype: torch.dtype) -> None:
    first, second = (maps.to(dtype) for maps in pairs())
    actual = similarity(name, first, second)
    assert actual.dtype == torch.float64
    for value, one, other in zip(actual.tolist(), first.double().numpy(), second.double().numpy(), strict=True):
        assert value == pytest.approx(ORACLES[name](one, other), abs=1e-9)
    assert len(set(actual.tolist())) > 3, "equal numbers would prove little"


def test_the_centred_correlation_is_that_of_what_differs_from_the_mean_map() -> None:
    first, second = pairs()
    one, other = (maps.double().numpy() for maps in (first, second))
    actual = similarity("centred_pearson", first, second)
    for number, value in enumerate(actual.tolist()):
        parts = [(maps[number] - sum(maps) / len(maps)).ravel() for maps in (one, other)]
        assert value == pytest.approx(np.corrcoef(*parts)[0, 1], abs=1e-9)


def test_a_common_centre_inflates_the_plain_correlation_and_not_the_centred_one() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.linspace(-1, 1, 9)[:, None], torch.linspace(-1, 1, 9)
    centre = torch.exp(-4 * (rows.square() + columns.square()))
    noise = torch.rand(2, 200, 9, 9, generator=generator)
    first, second = centre + 0.3 * noise[0], centre + 0.3 * noise[1]
    assert similarity("spearman", first, second).mean() > 0.6
    assert abs(similarity("centred_pearson", first, second).mean()) < 0.02


def test_random_maps_share_a_twentieth_of_their_tops_by_chance() -> None:
    generator = torch.Generator().manual_seed(2)
    first, second = torch.rand(2, 3000, 14, 14, generator=generator)
    assert similarity("top_iou", first, second).mean().item() == pytest.approx(0.054, abs=0.003)


@pytest.mark.parametrize(
    ("name", "same", "opposite"),
    [
        ("spearman", 1.0, -1 / 7),
        ("top_iou", 1.0, 0.0),
        ("jensen_shannon", 0.0, 1.0),
        ("centroid_shift", 0.0, math.hypot(0.5, 0.75)),
    ],
)
def test_equal_maps_and_two_peaks_in_opposite_corners_by_hand(name: str, same: float, opposite: float) -> None:
    """In two by four tokens: one rank is 8, seven are 4."""
    one, other = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    one[0, 0, 0] = other[0, 1, 3] = 3.0
    assert similarity(name, one, one).item() == pytest.approx(same, abs=1e-12)
    assert similarity(name, one, other).item() == pytest.approx(opposite, abs=1e-12)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_degenerate_maps_give_nan_and_leave_the_others_as_they_are(name: str) -> None:
    first, second = pairs()
    alone = similarity(name, first[:4], second[:4])
    first[4], second[5], first[6, 0, 0] = 0.0, 0.3, torch.nan
    values = similarity(name, first, second)
    assert values[4:].isnan().all()
    torch.testing.assert_close(values[:4], alone)
    assert similarity(name, first[4:], second[4:]).isnan().all()
    assert similarity(name, first[:0], second[:0]).shape == (0,)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_are_symmetric(name: str) -> None:
    first, second = pairs()
    torch.testing.assert_close(similarity(name, first, second), similarity(name, second, first))


@pytest.mark.parametrize("name", [name for name in SIMILARITIES if name != "centred_pearson"])
def test_similarities_of_one_image_do_not_depend_on_the_scale_of_its_map(name: str) -> None:
    first, second = (maps.double() for maps in pairs())
    torch.testing.assert_close(similarity(name, 7 * first, second / 3), similarity(name, first, second))


def test_gini_equals_its_oracle_and_the_cases_done_by_hand() -> None:
    maps, _ = pairs()
    for value, one in zip(gini(maps).tolist(), maps.double().numpy(), strict=True):
        assert value == pytest.approx(gini_oracle(one), abs=1e-9)
    by_hand = torch.tensor([[[0.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [3.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
    by_hand = torch.cat([by_hand, torch.full((1, 2, 2), torch.nan)])
    assert gini(by_hand).tolist() == pytest.approx([0.75, 0.25, math.nan, math.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosine", torch.rand(1, 2, 2), torch.rand(1, 2, 2)), "similarity is 'cosine'; choose one of spearman, "),
        (("spearman", torch.rand(1, 2, 2), torch.rand(2, 2, 2)), r"Maps are \[1, 2, 2\] and \[2, 2, 2\]"),
        (("spearman", torch.rand(2, 2), torch.rand(2, 2)), r"first maps have to be a float tensor \[B, H, W\]"),
        (("top_iou", torch.rand(1, 2, 2), torch.ones(1, 2, 2).int()), "second maps have to be a float tensor"),
        (("top_iou", torch.full((1, 2, 2), -1.0), torch.rand(1, 2, 2)), "first maps hold -1; they must not be neg"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        similarity(*arguments)
