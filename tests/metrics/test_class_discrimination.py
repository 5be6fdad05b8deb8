"""Class discrimination against an oracle that walks over pixels, and against numbers done by hand."""

import class_discrimination_oracle as oracle
import pytest
import torch
from torch import Tensor

from litcam.errors import InputError
from litcam.heatmaps import upsample
from litcam.metrics import ClassDiscrimination
from litcam.metrics.functional import CLASS_SCORES, class_discrimination

COUNTS = ("num_images", "num_degenerate", "num_without_region")


def random_case(count: int = 10, classes: int = 2, overlapping: bool = True) -> tuple[Tensor, Tensor]:
    """Smooth random maps, and a random rectangle for each class; of those that overlap each keeps its first row."""
    generator = torch.Generator().manual_seed(classes)
    heatmaps = upsample(torch.rand(count, classes, 4, 5, generator=generator), (24, 30))
    regions = torch.zeros(count, classes, 24, 30, dtype=torch.bool)
    for image in range(count):
        for label in range(classes):
            y, x, height, width = (int(torch.randint(high, (), generator=generator)) for high in (12, 18, 8, 8))
            regions[image, label, y : y + height + 4, x : x + width + 4] = True
            regions[image, :, label] = False
            regions[image, label, label] = True  # a row of its own
    if not overlapping:
        regions &= regions.cumsum(1) == 1
    return heatmaps, regions


def by_hand() -> tuple[Tensor, Tensor]:
    """One image of 2 by 4 pixels: class 0 owns three of them, class 1 two, one is of both, two are background."""
    heatmaps = torch.tensor(
        [[[0.2, 0.4, 0.8, 1.0], [0.1, 0.3, 0.9, 0.0]], [[0.5, 0.0, 0.7, 0.6], [0.0, 0.5, 1.0, 0.6]]]
    )
    regions = torch.tensor([[[1, 1, 1, 0], [1, 0, 0, 0]], [[0, 0, 1, 1], [0, 0, 0, 1]]]).bool()
    return heatmaps[None], regions[None]


def computed(metric: ClassDiscrimination) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_both_scores_equal_the_oracle_on_every_image(classes: int) -> None:
    heatmaps, regions = random_case(classes=classes)
    assert (regions.sum(1) > 1).any()  # some pixels are of several classes
    scores = class_discrimination(heatmaps, regions)
    for index in range(len(heatmaps)):
        expected = oracle.class_discrimination(heatmaps[index].tolist(), regions[index].tolist())
        assert [scores[name][index].item() for name in CLASS_SCORES] == pytest.approx(expected, abs=1e-6)


def test_a_case_done_by_hand() -> None:
    """Of the first map class 0 owns 0.2, 0.4, 0.1 and class 1 owns 1.0, 0.0; of the second 0.5, 0, 0 and 0.6, 0.6."""
    scores = class_discrimination(*by_hand())
    assert scores["class_energy"].item() == pytest.approx((0.7 / 1.7 + 1.2 / 1.7) / 2)
    assert (
        scores["class_pointing"].item() == 0.5
    )  # the first map's maximum, 1.0, is on class 1; the second's is its own


def test_ties_for_the_maximum_count_by_their_share() -> None:
    heatmaps, regions = by_hand()
    heatmaps[0, 0, 0, :2] = heatmaps[0, 0, 1, 3] = 1.0  # with [0, 3] four pixels attain the maximum, two are its own
    assert class_discrimination(heatmaps, regions)["class_pointing"].item() == (2 / 4 + 1) / 2


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_class_blind_method_scores_one_over_the_number_of_classes_whatever_their_areas(classes: int) -> None:
    heatmaps, regions = random_case(classes=classes)
    areas = regions.sum((-2, -1))
    assert (areas.amax(1) > 2 * areas.amin(1)).any()
    blind = heatmaps[:, :1].repeat(1, classes, 1, 1)
    blind[0, :, ::2] = 1.0  # with ties
    scores = class_discrimination(blind, regions)
    for name in CLASS_SCORES:
        assert scores[name].tolist() == pytest.approx([1 / classes] * len(heatmaps), abs=1e-12)


def test_maps_each_on_its_own_class_score_one_and_on_the_other_zero() -> None:
    _, regions = random_case(overlapping=False)
    background = ~regions.any(1, keepdim=True)
    for maps, expected in ((regions, 1.0), (regions.flip(1), 0.0)):
        scores = class_discrimination((maps | background).float(), regions)  # what lies on the background is no matter
        for name in CLASS_SCORES:
            assert scores[name].tolist() == [expected] * len(regions)


def test_only_pixels_of_exactly_one_class_count() -> None:
    heatmaps, regions = random_case()
    expected = class_discrimination(heatmaps, regions)
    elsewhere = (regions.sum(1, keepdim=True) != 1).expand_as(heatmaps)
    scores = class_discrimination(heatmaps.masked_fill(elsewhere, 1.0), regions)
    for name in CLASS_SCORES:
        assert torch.equal(scores[name], expected[name])


def test_batches_of_any_size_give_the_means_over_all_images() -> None:
    heatmaps, regions = random_case()
    together, apart = ClassDiscrimination(), ClassDiscrimination()
    together.update(heatmaps, regions)
    for part in (slice(0, 1), slice(1, 1), slice(1, 7), slice(7, 10)):
        apart.update(heatmaps[part], regions[part])
    expected = {name: values.mean().item() for name, values in class_discrimination(heatmaps, regions).items()}
    for metric in (together, apart):
        scores = computed(metric)
        assert {name: scores[name] for name in CLASS_SCORES} == pytest.approx(expected, abs=1e-12)
        assert [scores[count] for count in COUNTS] == [10, 0, 0]


def test_what_says_nothing_is_counted_and_left_out() -> None:
    heatmaps, regions = random_case(9)
    expected = class_discrimination(heatmaps[:2], regions[:2])
    heatmaps[2, 1] = 0.5
    heatmaps[3, 0, 0, 0] = float("nan")
    heatmaps[4, 1] *= ~regions[4].any(0)  # zero in all regions, though not constant
    regions[5, 0] = False
    regions[6, 1] = regions[6, 0]  # no pixel is of one class alone
    regions[7, 0] |= regions[7, 1]  # nor is any of class 1
    heatmaps[8], regions[8] = 0.0, False  # both: counted once
    metric = ClassDiscrimination()
    metric.update(heatmaps, regions)
    scores = computed(metric)
    assert [scores[count] for count in COUNTS] == [2, 4, 3]
    for name in CLASS_SCORES:
        assert scores[name] == pytest.approx(expected[name].mean().item(), abs=1e-12)


def test_without_images_the_means_are_nan_and_not_zero() -> None:
    metric = ClassDiscrimination()
    metric.update(torch.zeros(2, 2, 4, 4), torch.ones(2, 2, 4, 4, dtype=torch.bool))
    scores = metric.compute()
    assert scores["class_energy"].isnan()
    assert scores["class_pointing"].isnan()
    assert scores["num_degenerate"] == 2


def test_half_precision_maps_are_summed_in_double_precision() -> None:
    heatmaps, regions = (tensor.repeat_interleave(40, -1) for tensor in random_case())
    heatmaps = heatmaps.half()
    expected = class_discrimination(heatmaps.double(), regions)
    scores = class_discrimination(heatmaps, regions)
    for name in CLASS_SCORES:
        assert scores[name].dtype == torch.float64
        assert torch.equal(scores[name], expected[name])


@pytest.mark.parametrize(
    ("heatmaps", "regions", "message"),
    [
        (torch.rand(2, 4, 4), torch.ones(2, 4, 4).bool(), r"float tensor \[B, K, H, W\] of at least two classes, not"),
        (torch.rand(2, 1, 4, 4), torch.ones(2, 1, 4, 4).bool(), r"two classes, not torch.float32 \[2, 1, 4, 4\]"),
        (torch.ones(2, 2, 4, 4).int(), torch.ones(2, 2, 4, 4).bool(), "not torch.int32"),
        (torch.rand(2, 2, 4, 4), torch.ones(2, 2, 4, 4), r"regions have to be bool \[2, 2, 4, 4\] like the heatmaps"),
        (torch.rand(2, 2, 4, 4), torch.ones(2, 3, 4, 4).bool(), r"not torch.bool \[2, 3, 4, 4\]"),
    ],
)
def test_wrong_shapes_and_dtypes_are_named(heatmaps: Tensor, regions: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ClassDiscrimination().update(heatmaps, regions)
