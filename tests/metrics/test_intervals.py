"""The intervals of the metrics: as wide as they should be, and the same in any batches, orders and processes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from litcam.errors import InputError
from litcam.heatmaps import upsample
from litcam.metrics import Localization, MaxBoxAcc, Perturbation, PxAP, Segmentation
from litcam.metrics.functional import LOCALIZATION_SCORES, localization
from litcam.metrics.functional.bootstrap import content_keys, poisson_weights
from litcam.metrics.image_metric import ImageMetric, Measured


def random_case(count: int = 40) -> tuple[Tensor, Tensor]:
    """Maps and regions."""
    generator = torch.Generator().manual_seed(0)
    heatmaps = upsample(torch.rand(count, 4, 4, generator=generator), (12, 12))
    return heatmaps, torch.rand(count, 12, 12, generator=generator) > torch.rand(count, 1, 1, generator=generator)


class Mean(ImageMetric):
    """The mean of numbers."""

    def __init__(self, resamples: int = 1000) -> None:
        super().__init__(1, resamples)

    @property
    def description(self) -> str:
        return "mean"

    def measure(self, values: Tensor) -> Measured:
        return Measured(values[:, None].double(), torch.ones(len(values), dtype=torch.bool), content_keys(values))

    def scores(self, sums: Tensor, num_images: Tensor) -> dict[str, Tensor]:
        return {"mean": sums[..., 0] / num_images}


def interval_of(values: Tensor) -> tuple[float, float]:
    metric = Mean()
    metric.update(values)
    scores = metric.compute()
    assert scores["num_images"] == len(values)
    return float(scores["mean_low"]), float(scores["mean_high"])


def test_a_resample_draws_an_image_a_poisson_number_of_times() -> None:
    weights = poisson_weights(content_keys(torch.arange(500)), 2000)
    expected = {0: 0.36788, 1: 0.36788, 2: 0.18394, 3: 0.06131, 4: 0.01533, 5: 0.00307}
    for number, share in expected.items():
        assert float((weights == number).double().mean()) == pytest.approx(share, abs=0.001)
    for axis in (0, 1):  # neither images nor resamples go together
        correlation = np.corrcoef(weights.numpy() if axis else weights.numpy().T)
        off_diagonal = correlation[~np.eye(len(correlation), dtype=bool)]
        size = weights.shape[axis]
        assert np.abs(off_diagonal).max() < 6 / size**0.5
        assert off_diagonal.std() == pytest.approx(size**-0.5, rel=0.05)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    intervals = [interval_of(torch.randn(60, generator=generator)) for _ in range(300)]
    assert 0.90 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.98


def test_an_interval_is_that_of_drawing_images_with_replacement() -> None:
    """An oracle by numpy, image by image drawn."""
    heatmaps, regions = random_case()
    metric = Localization()
    metric.update(heatmaps, regions)
    scores, single = metric.compute(), localization(heatmaps, regions)
    draws = np.random.default_rng(0).integers(40, size=(4000, 40))
    for name in LOCALIZATION_SCORES:
        low, high = np.percentile(single[name].numpy()[draws].mean(1), [2.5, 97.5])
        assert float(scores[f"{name}_low"]) == pytest.approx(low, abs=0.12 * (high - low))
        assert float(scores[f"{name}_high"]) == pytest.approx(high, abs=0.12 * (high - low))
        assert low < float(scores[name]) < high


@pytest.mark.parametrize("metric_type", [PxAP, Segmentation])
def test_scores_over_the_dataset_have_intervals_too(metric_type: type[ImageMetric]) -> None:
    """An oracle that computes the whole metric again for every resample."""
    heatmaps, regions = random_case()
    metric = metric_type(resamples=1000)
    metric.update(heatmaps, regions)
    name = "pxap" if metric_type is PxAP else "miou"
    rng = np.random.default_rng(0)
    again = []
    for _ in range(300):
        drawn = torch.from_numpy(rng.integers(40, size=40))
        resampled = metric_type(resamples=0)
        resampled.update(heatmaps[drawn], regions[drawn])
        again.append(float(resampled.compute()[name]))
    low, high = np.percentile(again, [2.5, 97.5])
    scores = metric.compute()
    assert float(scores[f"{name}_low"]) == pytest.approx(low, abs=0.25 * (high - low))
    assert float(scores[f"{name}_high"]) == pytest.approx(high, abs=0.25 * (high - low))


def test_an_interval_is_the_same_in_any_order_batches_and_processes() -> None:
    heatmaps, regions = random_case()
    together, apart, elsewhere = Localization(), Localization(), Localization()
    together.update(heatmaps, regions)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for metric, part in ((apart, order[:3]), (apart, order[3:20]), (elsewhere, order[20:])):
        metric.update(heatmaps[part], regions[part])
    apart.merge_state(elsewhere)
    expected = together.compute()
    for name, value in apart.compute().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)


def test_images_with_the_same_map_are_drawn_apart() -> None:
    """As those of a control: what differs is the region, or the boxes."""
    heatmaps, regions = random_case()
    heatmaps = heatmaps[:1].expand(40, -1, -1)
    boxes = torch.tensor([[index, 0, 0, 1 + index % 10, 3 + index // 10] for index in range(40)], dtype=torch.float)
    for measured in (Localization().measure(heatmaps, regions), MaxBoxAcc().measure(heatmaps, boxes)):
        assert len(measured.keys.unique()) == 40


def test_curves_have_intervals_point_by_point() -> None:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    metric = Perturbation()
    metric.update(
        lambda x: torch.stack([x.mean((1, 2, 3)), 0 * x[:, 0, 0, 0]], 1), images, images[:, 0], torch.zeros(6).long()
    )
    scores = metric.compute()
    for name in ("lerf_curve", "morf_curve"):
        low, high = scores[f"{name}_low"], scores[f"{name}_high"]
        assert low.shape == high.shape == (11,)
        assert (low <= scores[name]).all()
        assert (scores[name] <= high).all()
        assert low[0] < high[0]


def test_without_images_and_without_resamples() -> None:
    assert Localization().compute()["iou_low"].isnan()
    assert "iou_low" not in Localization(resamples=0).compute()
    with pytest.raises(InputError, match="resamples is -1"):
        Localization(resamples=-1)
