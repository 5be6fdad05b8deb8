"""Focus against a loop over pixels, by hand, and over batches and processes."""

import pytest
import torch
from torch import Tensor

from litcam.errors import InputError
from litcam.heatmaps import upsample
from litcam.metrics import Focus
from litcam.metrics.functional.focus import focus


def random_case(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    heatmaps = upsample(torch.rand(count, 3, 4, generator=generator), (6, 10))
    return heatmaps, torch.rand(count, 6, 10, generator=generator) > 0.7


def oracle(heatmap: Tensor, region: Tensor) -> dict[str, float]:
    """Pixel by pixel."""
    inside, outside = [], []
    for y in range(heatmap.shape[0]):
        for x in range(heatmap.shape[1]):
            (inside if region[y, x] else outside).append(float(heatmap[y, x]))
    energy = sum(inside) / (sum(inside) + sum(outside))
    return {
        "energy_lift": energy / (len(inside) / (len(inside) + len(outside))),
        "a_tsi": (sum(outside) / len(outside)) / (sum(inside) / len(inside)),
        "m_tsi": max(outside) / max(inside),
    }


def test_every_score_equals_the_oracle() -> None:
    heatmaps, regions = random_case()
    scores = focus(heatmaps, regions)
    for index in range(len(heatmaps)):
        for name, value in oracle(heatmaps[index], regions[index]).items():
            assert float(scores[name][index]) == pytest.approx(value, rel=1e-6), name


def test_by_hand() -> None:
    heatmaps = torch.tensor([[[1.0, 0.5, 0.5, 0.0]], [[0.0, 1.0, 1.0, 0.0]]])
    regions = torch.tensor([[[True, False, False, False]], [[True, False, False, True]]])
    scores = focus(heatmaps, regions)
    assert scores["energy_lift"].tolist() == [2.0, 0.0]
    assert scores["a_tsi"].tolist() == [pytest.approx(1 / 3), float("inf")]
    assert scores["m_tsi"].tolist() == [0.5, float("inf")]
    metric = Focus()
    metric.update(heatmaps, regions)
    computed = metric.compute()
    assert [float(computed[name]) for name in ("energy_lift", "a_tsi_above_one", "m_tsi_above_one")] == [1.0, 0.5, 0.5]


def test_a_map_by_chance_has_lift_one_whatever_the_size_of_the_object() -> None:
    generator = torch.Generator().manual_seed(0)
    heatmaps = torch.rand(400, 20, 20, generator=generator)
    for size in (3, 10, 18):
        regions = torch.zeros(400, 20, 20, dtype=torch.bool)
        regions[:, :size, :size] = True
        metric = Focus()
        metric.update(heatmaps, regions)
        assert float(metric.compute()["energy_lift"]) == pytest.approx(1, abs=0.02)


def test_batches_and_merged_halves_give_the_same() -> None:
    heatmaps, regions = random_case()
    together, apart, other = Focus(), Focus(), Focus()
    together.update(heatmaps, regions)
    for metric, part in ((apart, slice(0, 1)), (apart, slice(1, 1)), (apart, slice(1, 5)), (other, slice(5, 8))):
        metric.update(heatmaps[part], regions[part])
    apart.merge_state(other)
    expected = together.compute()
    for name, value in apart.compute().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)


def test_what_says_nothing_is_counted_and_left_out() -> None:
    heatmaps, regions = random_case()
    expected = Focus()
    expected.update(heatmaps[:4], regions[:4])
    heatmaps[4] = 0.5
    heatmaps[5, 0, 0] = float("nan")
    regions[6], regions[7] = False, True
    metric = Focus()
    metric.update(heatmaps, regions)
    scores = metric.compute()
    assert [int(scores[name]) for name in ("num_images", "num_degenerate", "num_without_region")] == [4, 2, 2]
    assert float(scores["energy_lift"]) == float(expected.compute()["energy_lift"])
    with pytest.raises(InputError, match=r"lie in \[0, 1\]"):
        focus(2 * heatmaps[:4], regions[:4])
