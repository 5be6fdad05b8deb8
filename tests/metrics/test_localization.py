"""Localization against an oracle that floods components and counts pixels, and against numbers done by hand."""

import cv2
import localization_oracles
import numpy as np
import pytest
import torch

import oracles
from litcam.callbacks import LocalizationMonitor
from litcam.errors import InputError
from litcam.heatmaps import upsample
from litcam.metrics import Localization
from litcam.metrics.functional import LOCALIZATION_SCORES, localization, otsu_thresholds


def random_case(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random maps and random rectangles as true regions."""
    generator = torch.Generator().manual_seed(3)
    heatmaps = upsample(torch.rand(count, 5, 7, generator=generator), (40, 56))
    regions = torch.zeros(count, 40, 56, dtype=torch.bool)
    for region in regions:
        y, x = (int(torch.randint(0, high, (), generator=generator)) for high in (25, 40))
        region[y : y + 14, x : x + 15] = True
    return heatmaps, regions


@pytest.mark.parametrize("prediction", ["boxes", "mask"])
@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_every_score_equals_the_oracle_on_every_image(prediction: str, paper: bool, threshold: float) -> None:
    heatmaps, regions = random_case()
    scores = localization(heatmaps, regions, threshold, prediction, paper)
    for index, (heatmap, region) in enumerate(zip(heatmaps.numpy(), regions.numpy(), strict=True)):
        expected = oracles.localization(heatmap, region, threshold, boxes=prediction == "boxes", paper=paper)
        assert {name: scores[name][index].item() for name in LOCALIZATION_SCORES} == pytest.approx(expected, abs=1e-6)


def test_a_case_done_by_hand() -> None:
    heatmap = torch.zeros(1, 4, 4)
    heatmap[0, 0, 0] = 1.0  # two diagonal pixels: one 8-connected component, whose box has 4 pixels
    heatmap[0, 1, 1] = 0.6
    heatmap[0, 3, 3] = 0.5  # not above the threshold
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[0, :2, :3] = True  # 6 pixels, all 4 predicted ones among them
    scores = {name: value.item() for name, value in localization(heatmap, region).items()}
    assert scores == pytest.approx(
        {
            "pixel_accuracy": 14 / 16,
            "iou": 4 / 6,
            "dice": 8 / 10,
            "precision": 1.0,
            "recall": 4 / 6,
            "pointing_game": 1.0,
            "energy_inside": 1.6 / 2.1,
        }
    )
    pixels = localization(heatmap, region, prediction="mask")
    assert pixels["iou"].item() == pytest.approx(2 / 6)


def test_ties_for_the_maximum_count_by_their_share_inside() -> None:
    heatmap = torch.zeros(1, 2, 2)
    heatmap[0, 0] = 1.0
    region = torch.tensor([[[True, False], [False, False]]])
    assert localization(heatmap, region)["pointing_game"].item() == 0.5


def test_batches_of_any_size_give_the_means_over_all_images() -> None:
    heatmaps, regions = random_case()
    together, apart = Localization(), Localization()
    together.update(heatmaps, regions)
    for part in (slice(0, 1), slice(1, 8), slice(8, 12)):
        apart.update(heatmaps[part], regions[part])
    expected = {name: values.mean().item() for name, values in localization(heatmaps, regions).items()}
    for metric in (together, apart):
        scores = {name: value.item() for name, value in metric.compute().items()}
        assert {name: scores[name] for name in LOCALIZATION_SCORES} == pytest.approx(expected, abs=1e-12)
        assert scores["num_images"] == 12


def test_degenerate_maps_and_images_without_region_are_counted_and_left_out() -> None:
    heatmaps, regions = random_case(5)
    expected = localization(heatmaps[:2], regions[:2])
    heatmaps[2] = 0.0
    heatmaps[3, 0, 0] = float("nan")
    regions[4] = False
    metric = Localization()
    metric.update(heatmaps, regions)
    scores = metric.compute()
    assert [int(scores[key]) for key in ("num_images", "num_degenerate", "num_without_region")] == [2, 2, 1]
    for name in LOCALIZATION_SCORES:
        assert scores[name].item() == pytest.approx(expected[name].mean().item())


def test_without_images_the_means_are_nan_and_not_zero() -> None:
    metric = Localization()
    metric.update(torch.zeros(2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool))
    scores = metric.compute()
    assert scores["iou"].isnan()
    assert scores["num_degenerate"] == 2


@pytest.mark.parametrize(
    ("heatmaps", "regions", "message"),
    [
        (torch.rand(2, 4), torch.ones(2, 4, dtype=torch.bool), "heatmaps have to be a float tensor"),
        (torch.rand(2, 4, 4), torch.ones(2, 4, 4), "regions have to be bool"),
        (torch.rand(2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool), "regions have to be bool"),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(heatmaps: torch.Tensor, regions: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Localization().update(heatmaps, regions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_otsus_threshold_equals_the_oracle(dtype: torch.dtype) -> None:
    heatmaps = random_case(4)[0].to(dtype)
    heatmaps[0] = (heatmaps[0] * 256).round() / 256  # on the ends of the bins
    expected = [localization_oracles.otsu(heatmap) for heatmap in heatmaps.double().numpy()]
    assert otsu_thresholds(heatmaps).tolist() == expected
    assert len(set(expected)) == 4


def test_otsus_threshold_is_opencvs_where_the_map_has_the_values_of_an_8_bit_image() -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        peaks = generator.normal(generator.integers(40, 200, 2), 20, (500, 2)).clip(0, 255)
        image = peaks.astype(np.uint8)
        threshold, _ = cv2.threshold(image, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        heatmap = torch.from_numpy((image + 0.5) / 256)[None]  # in the middle of the bins
        assert otsu_thresholds(heatmap).item() == (threshold + 1) / 256


def test_otsus_threshold_done_by_hand() -> None:
    """The threshold is the end of the lower class's last bin: that of 0 is bin 0, that of 0.1 bin 25."""
    heatmaps = torch.tensor([[[0.0, 0.9], [0.9, 1.0]], [[0.0, 0.0], [0.1, 1.0]]])
    assert (otsu_thresholds(heatmaps) * 256).tolist() == [1, 26]
    assert localization(heatmaps, heatmaps > 0.2, "otsu", "mask")["iou"].tolist() == [1, 1]
    symmetric = torch.tensor([[[10.5, 20.5], [20.5, 30.5]]]) / 256  # both splits are equally good: the lower counts
    assert (otsu_thresholds(symmetric) * 256).tolist() == [11]
    one_bin = torch.tensor([[[0.501, 0.502]]])
    assert (otsu_thresholds(one_bin) * 256).tolist() == [1]


@pytest.mark.parametrize("prediction", ["boxes", "mask"])
@pytest.mark.parametrize("paper", [False, True])
def test_every_map_is_cut_at_its_own_otsu_threshold(prediction: str, paper: bool) -> None:
    heatmaps, regions = random_case(4)
    metric = Localization("otsu", prediction, paper)  # type: ignore[arg-type]
    metric.update(heatmaps, regions)
    scores = metric.compute()
    expected = [
        oracles.localization(heatmap, region, localization_oracles.otsu(heatmap), prediction == "boxes", paper)
        for heatmap, region in zip(heatmaps.double().numpy(), regions.numpy(), strict=True)
    ]
    for name in LOCALIZATION_SCORES:
        assert scores[name].item() == pytest.approx(np.mean([of_image[name] for of_image in expected]), abs=1e-6)


def test_otsu_leaves_out_degenerate_maps_and_refuses_unscaled_ones() -> None:
    heatmaps, regions = random_case(4)
    heatmaps[2] = 0.5
    heatmaps[3, 0, :2] = torch.tensor([float("nan"), float("inf")])
    metric, expected = Localization("otsu"), Localization("otsu")
    metric.update(heatmaps, regions)
    expected.update(heatmaps[:2], regions[:2])
    assert metric.compute()["num_degenerate"] == 2
    assert metric.compute()["iou"] == expected.compute()["iou"]
    with pytest.raises(InputError, match=r"lie in \[0, 1\], but hold"):
        metric.update(heatmaps + 1, regions)


def test_the_monitor_takes_otsu_through() -> None:
    assert LocalizationMonitor(threshold="otsu").metric.threshold == "otsu"


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="threshold is 1"):
        Localization(threshold=1.0)
    with pytest.raises(InputError, match="threshold is 'triangle'; choose one of otsu"):
        Localization(threshold="triangle")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="prediction is 'box'"):
        Localization(prediction="box")  # type: ignore[arg-type]
