"""Reliance: models whose needs are known get the numbers that follow by hand, in any batches and processes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from litcam.errors import InputError
from litcam.metrics import Reliance
from litcam.metrics.functional.reliance import (
    BLUR_SHARE,
    FILLS,
    MOST_WAITING,
    PartnerStream,
    Regarded,
    continued,
    next_of_another_class,
    object_and_background,
    relative_foreground_sensitivity,
    reliance,
)

SCORES = ("accuracy", "accuracy_object", "accuracy_background")


def scenes(count: int = 9, side: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Images, one region each and classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, side, side, generator=generator)
    regions = torch.zeros(count, side, side, dtype=torch.bool)
    for index, (y, x) in enumerate(torch.randint(0, side // 2, (count, 2), generator=generator).tolist()):
        regions[index, y : y + 5, x : x + 4 + index % 3] = True
    return images, regions, torch.randint(3, (count,), generator=generator)


def linear_net(side: int = 12) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 3))


def coloured(labels: list[int], cues: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Images of 0.3 with the label's channel at 1 on the object, and the cue's channel at 1 in the opposite corner."""
    images, regions = torch.full((len(labels), 3, 8, 8), 0.3), torch.zeros(len(labels), 8, 8, dtype=torch.bool)
    regions[:, :3, :3] = True
    for image, label, cue in zip(images, labels, cues, strict=True):
        image[label, :3, :3] = 1
        image[cue, 6:, 6:] = 1
    return images, regions, torch.tensor(labels)


def sees_object(images: Tensor) -> Tensor:
    """The channel that is strongest where the object is."""
    return 10 * images[:, :, :3, :3].mean((2, 3))


def sees_corner(images: Tensor) -> Tensor:
    """The channel that is strongest where the cue is."""
    return 10 * images[:, :, 6:, 6:].mean((2, 3))


# By hand.


@pytest.mark.parametrize("fill", FILLS)
def test_a_sound_model_needs_the_object_and_nothing_else(fill: Any) -> None:
    images, regions, labels = coloured([0, 1, 2, 1], [0, 1, 2, 1])
    metric = Reliance(fill)
    metric.update(sees_object, images, regions, labels)
    scores = {name: float(score) for name, score in metric.compute().items()}
    assert (scores["accuracy"], scores["accuracy_object"], scores["reliance_background"]) == (1, 1, 0)
    # Without the object all three channels are equal, argmax takes the first; swapped in are other images' grounds.
    assert scores["accuracy_background"] == pytest.approx(0.25)
    assert scores["reliance_object"] == pytest.approx(0.75)
    # ā = .625: (1 − .25) / (2 · .375)
    assert scores["relative_foreground_sensitivity"] == pytest.approx(1)
    whole = math.exp(10) / (math.exp(10) + 2 * math.exp(3))
    assert scores["probability"] == pytest.approx(whole)
    assert scores["probability_object"] == pytest.approx(whole)
    # Softly: a trace of the cue in the far corner is blurred into the object's place.
    assert scores["probability_background"] == pytest.approx(1 / 3, abs=1e-3)


@pytest.mark.parametrize("fill", FILLS)
def test_a_model_that_cheats_needs_the_cue_and_no_object(fill: Any) -> None:
    images, regions, labels = coloured([0, 1, 2, 1], [0, 1, 2, 1])
    metric = Reliance(fill)
    metric.update(sees_corner, images, regions, labels)
    scores = {name: float(score) for name, score in metric.compute().items()}
    assert (scores["accuracy"], scores["accuracy_background"], scores["reliance_object"]) == (1, 1, 0)
    if fill == "swap":  # the partner's corner has the colour of another class
        assert (scores["accuracy_object"], scores["relative_foreground_sensitivity"]) == (0, -1)
    elif fill == "mean":  # all channels are 0
        assert scores["accuracy_object"] == 0.25
    else:  # the object's colour is what is blurred into the corner: nothing of the cue is left, but of the object
        assert scores["accuracy_object"] == 1
        assert math.isnan(scores["relative_foreground_sensitivity"])


def test_a_redrawn_cue_leaves_a_cheating_model_nothing() -> None:
    images, regions, labels = coloured([0, 1, 2, 1], [1, 2, 0, 0])
    metric = Reliance()
    metric.update(sees_corner, images, regions, labels)
    assert [float(metric.compute()[name]) for name in SCORES] == [0, 1 / 4, 0]  # one partner's cue is right by chance


@pytest.mark.parametrize(
    ("of_object", "of_background", "expected"),
    [(1, 0, 1), (0, 1, -1), (0.5, 0.5, 0), (0.9, 0.5, 2 / 3), (0.3, 0.1, 0.5), (0, 0, None), (1, 1, None)],
)
def test_relative_foreground_sensitivity(of_object: float, of_background: float, expected: float | None) -> None:
    actual = float(relative_foreground_sensitivity(torch.tensor(of_object), torch.tensor(of_background)))
    assert math.isnan(actual) if expected is None else actual == pytest.approx(expected)


# Against an oracle, pixel by pixel.


def smooth_by_hand(image: np.ndarray[Any, Any], kept: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Gaussian means of the kept pixels of [C, H, W], one pixel after the other."""
    _, height, width = image.shape
    sigma, result = BLUR_SHARE * min(height, width), np.zeros_like(image)
    rows, columns = np.mgrid[:height, :width]
    for y in range(height):
        for x in range(width):
            weights = (np.exp(-((rows - y) ** 2) / (2 * sigma**2)) + 1e-6) * kept
            weights *= np.exp(-((columns - x) ** 2) / (2 * sigma**2)) + 1e-6
            if kept.any():
                result[:, y, x] = (image * weights).sum((1, 2)) / weights.sum()
    return result


def by_hand(net: Any, images: Tensor, regions: Tensor, labels: Tensor, fill: str) -> np.ndarray[Any, Any]:
    """The six numbers of every image [B, 6], one image and one pixel after the other; partners from the whole batch."""
    rows = []
    for i in range(len(images)):
        image, region = images[i].double().numpy(), regions[i].numpy()
        around = within = np.zeros_like(image)
        if fill == "blur":
            around, within = smooth_by_hand(image, region), smooth_by_hand(image, ~region)
        elif fill == "swap":
            partner = next(
                j % len(labels) for j in range(i + 1, i + len(labels)) if labels[j % len(labels)] != labels[i]
            )
            other, foreign = images[partner].double().numpy(), regions[partner].numpy()
            background = smooth_by_hand(other, ~foreign)
            around = within = np.where(foreign, background, other)
        versions = [image, np.where(region, image, around), np.where(region, within, image)]
        logits = [net(torch.from_numpy(version)[None].float())[0].double() for version in versions]
        rows.append(
            [float(each.argmax() == labels[i]) for each in logits]
            + [float(each.detach().softmax(0)[labels[i]]) for each in logits]
        )
    return np.array(rows)


@pytest.mark.parametrize("fill", FILLS)
def test_the_numbers_are_those_of_a_slow_oracle(fill: Any) -> None:
    net = linear_net()
    images, regions, labels = scenes()
    expected = by_hand(net, images, regions, labels, fill)
    assert len(np.unique(expected[:, 0])) == 2, "some are predicted, some not"
    measured = Reliance(fill).measure(net, images, regions, labels)
    np.testing.assert_allclose(measured.rows.numpy(), expected, rtol=0, atol=1e-5)
    metric = Reliance(fill)
    metric.update(net, images, regions, labels, net(images))
    scores = metric.compute()
    assert [float(scores[name]) for name in SCORES] == pytest.approx(expected[:, :3].mean(0))
    for name in (*SCORES, "probability", "reliance_object", "reliance_background"):
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]


def test_a_pixel_that_is_removed_is_nowhere_in_what_replaces_it() -> None:
    images, regions, _ = scenes()
    changed = images + 100 * regions[:, None]
    for fill in FILLS:
        others = {"others": changed.roll(1, 0), "other_regions": regions.roll(1, 0)} if fill == "swap" else {}
        plain = {"others": images.roll(1, 0), "other_regions": regions.roll(1, 0)} if fill == "swap" else {}
        torch.testing.assert_close(
            object_and_background(changed, regions, fill, **others)[1],  # type: ignore[arg-type]
            object_and_background(images, regions, fill, **plain)[1],  # type: ignore[arg-type]
            atol=1e-5,
            rtol=0,
        )
    outside = images + 100 * ~regions[:, None]
    for fill in ("mean", "blur"):
        expected = object_and_background(images, regions, fill)[0]  # type: ignore[arg-type]
        torch.testing.assert_close(object_and_background(outside, regions, fill)[0], expected, atol=1e-5, rtol=0)  # type: ignore[arg-type]


def test_nothing_kept_gives_nothing() -> None:
    images, regions, _ = scenes()
    assert not continued(images, torch.zeros_like(regions)[:, None]).any()


def test_large_images_have_finite_fills() -> None:
    regions = torch.zeros(1, 16, 400, dtype=torch.bool)
    regions[:, :2, :2] = True
    image = torch.randn(1, 3, 16, 400)
    filled = continued(image, regions[:, None])
    torch.testing.assert_close(filled[0, :, -1, -1], image[0, :, :2, :2].mean((1, 2)), atol=1e-2, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 4, 128])
def test_two_forwards_per_image_and_one_more_without_logits(batch_size: int) -> None:
    net, seen = linear_net(), []
    images, regions, labels = scenes()

    def counting(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return net(batch)

    known = reliance(counting, images, regions, labels, net(images), "mean", batch_size=batch_size)
    assert (sum(seen), max(seen)) == (18, min(9, batch_size))
    unknown = reliance(counting, images, regions, labels, None, "mean", batch_size=batch_size)
    assert sum(seen) == 18 + 27
    torch.testing.assert_close(known, unknown, rtol=0, atol=1e-6)


# Batches and processes.


@pytest.mark.parametrize("fill", FILLS)
def test_any_batches_and_merged_processes_give_the_same_numbers(fill: Any) -> None:
    net = linear_net()
    images, regions, labels = scenes()
    partner = next_of_another_class(labels)
    together, apart, elsewhere = Reliance(fill), Reliance(fill), Reliance(fill)
    together.update(net, images, regions, labels)
    for metric, part in ((apart, slice(0, 1)), (apart, slice(1, 5)), (elsewhere, slice(5, 9))):
        others = (images[partner[part]], regions[partner[part]]) if fill == "swap" else (None, None)
        metric.update(net, images[part], regions[part], labels[part], net(images[part]), *others)
    apart.merge_state(elsewhere)
    expected = together.compute()
    assert expected["num_images"] == 9
    for name, value in apart.compute().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6, equal_nan=True)


def test_the_next_of_another_class_goes_round() -> None:
    assert next_of_another_class(torch.tensor([0, 0, 1, 2, 2, 0])).tolist() == [2, 2, 3, 5, 5, 2]
    assert next_of_another_class(torch.tensor([4, 4])).tolist() == [-1, -1]
    assert next_of_another_class(torch.tensor([], dtype=torch.int64)).tolist() == []


def partners_of(labels: list[int], sizes: list[int], regions: Tensor | None = None) -> dict[int, int | None]:
    """Which image each gets from a stream in batches of these sizes; an image holds its own number."""
    stream, found = PartnerStream(), {}
    images = torch.arange(len(labels)).float()[:, None, None, None].expand(-1, 3, 2, 2)
    if regions is None:
        regions = torch.zeros(len(labels), 2, 2, dtype=torch.bool)
        regions[:, 0] = True
    whole = Regarded(images, regions, torch.tensor(labels), images[:, :, 0, 0], torch.arange(len(labels)))
    begins = np.cumsum([0, *sizes])
    batches = [whole.take(torch.arange(begin, begin + size)) for begin, size in zip(begins, sizes, strict=False)]
    for pairs in [*(stream.pair(batch) for batch in batches), stream.end()]:
        for mine, others, other_regions in pairs:
            assert mine.places.tolist() == mine.images[:, 0, 0, 0].tolist()
            for one, other, region in zip(mine.images[:, 0, 0, 0], others[:, 0, 0, 0], other_regions, strict=True):
                assert int(one) not in found, "each image once"
                found[int(one)] = int(other) if region.any() else None
    assert len(found) == len(labels)
    return found


@pytest.mark.parametrize("sizes", [[7], [1] * 7, [2, 3, 2], [1, 6], [0, 4, 0, 3]])
def test_a_stream_pairs_images_alike_in_any_batches(sizes: list[int]) -> None:
    expected = {0: 2, 1: 2, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4}
    assert partners_of([5, 5, 3, 1, 1, 2, 2], sizes) == expected


@pytest.mark.parametrize("sizes", [[4], [1] * 4, [2, 2]])
def test_images_without_object_or_background_are_nobodys_partner(sizes: list[int]) -> None:
    regions = torch.zeros(4, 2, 2, dtype=torch.bool)
    regions[:, 0] = True
    regions[1], regions[2] = False, True
    assert partners_of([0, 1, 1, 2], sizes, regions) == {0: 3, 1: None, 2: None, 3: 0}


@pytest.mark.parametrize("sizes", [[3], [1, 1, 1]])
def test_images_of_one_class_only_have_no_partner(sizes: list[int]) -> None:
    assert partners_of([1, 1, 1], sizes) == {0: None, 1: None, 2: None}


@pytest.mark.parametrize("size", [1, 10, MOST_WAITING + 4])
def test_a_long_wait_for_another_class_ends_alike_in_any_batches(size: int) -> None:
    count = MOST_WAITING + 3
    full, rest = divmod(count + 1, size)
    found = partners_of([0] * count + [1], [size] * full + [rest])
    assert [index for index, other in found.items() if other is None] == list(range(MOST_WAITING, count))
    assert {other for other in found.values() if other is not None} == {count, MOST_WAITING - 1}


# What is left out, and what is refused.


def test_images_without_object_background_or_partner_are_counted_and_in_no_mean() -> None:
    net = linear_net()
    images, regions, labels = scenes()
    regions[0], regions[1] = False, True
    metric, of_others = Reliance("mean"), Reliance("mean")
    metric.update(net, images, regions, labels)
    of_others.update(net, images[2:], regions[2:], labels[2:])
    scores, expected = metric.compute(), of_others.compute()
    counts = {name: int(scores[name]) for name in metric.counted}
    assert counts == {"num_images": 7, "num_degenerate": 1, "num_without_region": 1, "num_without_partner": 0}
    assert [float(scores[name]) for name in SCORES] == [float(expected[name]) for name in SCORES]
    swap = Reliance()
    swap.update(net, images, regions, torch.tensor([0, 1, *[2] * 7]))
    assert (int(swap.num_images), int(swap.num_without_partner)) == (0, 7), "the first two are nobody's partner"
    assert swap.compute()["accuracy"].isnan()


def test_given_partners_with_an_empty_region_are_none() -> None:
    net = linear_net()
    images, regions, labels = scenes()
    other_regions = regions.clone()
    other_regions[3:] = False
    metric = Reliance()
    metric.update(net, images, regions, labels, None, images.roll(1, 0), other_regions)
    assert (int(metric.num_images), int(metric.num_without_partner)) == (3, 6)


def test_no_image_gives_nan_and_no_error() -> None:
    for fill in FILLS:
        metric = Reliance(fill)
        images, regions, labels = (tensor[:0] for tensor in scenes())
        metric.update(linear_net(), images, regions, labels)
        assert metric.compute()["accuracy"].isnan()
    assert "accuracy_low" not in Reliance(resamples=0).compute()


def test_the_net_is_left_as_it_was_and_runs_in_evaluation_mode() -> None:
    net = nn.Sequential(linear_net(), nn.Dropout(0.9)).train()
    images, regions, labels = scenes()
    first, second = (Reliance("mean").measure(net, images, regions, labels).rows for _ in range(2))
    assert torch.equal(first, second)
    assert net.training
    assert net[1].training
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fill": "noise"}, "fill is 'noise'; choose one of swap, mean, blur"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"resamples": -1}, "resamples is -1"),
    ],
)
def test_options_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Reliance(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": torch.zeros(9, 12, 12)}, r"regions torch.float32 \[9, 12, 12\] do not fit"),
        ({"regions": torch.zeros(9, 6, 6, dtype=torch.bool)}, r"\[9, 6, 6\] do not fit"),
        ({"targets": torch.zeros(9)}, "targets have to be class indices"),
        ({"targets": torch.tensor([3, *[0] * 8])}, r"targets reach from 0 to 3, but logits are \[9, 3\]"),
        ({"images": torch.zeros(9, 3, 12, 12, dtype=torch.uint8)}, "have to be a float tensor"),
        ({"others": torch.zeros(9, 3, 6, 6), "other_regions": torch.ones(9, 12, 12).tril().bool()}, "the same are"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    images, regions, targets = scenes()
    with pytest.raises(InputError, match=message):
        Reliance().update(linear_net(), **{"images": images, "regions": regions, "targets": targets, **change})


def test_a_swap_without_others_is_refused_by_the_function() -> None:
    images, regions, targets = scenes()
    with pytest.raises(InputError, match="give others, another image for each, and other_regions"):
        reliance(linear_net(), images, regions, targets)


def test_the_description_says_what_replaces_what() -> None:
    assert "another image's background" in Reliance().description
    assert Reliance("mean", precision="bf16").description.endswith("bfloat16 autocast")
