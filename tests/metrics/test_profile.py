"""The positional profile, and the ranks it is made of, against loops over tokens and by hand."""

import math
import warnings
from typing import Any

import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from litcam.errors import InputError
from litcam.metrics.functional.correlation import ranks
from litcam.metrics.functional.profile import positional_profile


def places_oracle(values: list[float]) -> list[float]:
    """The rank of each value from 0 to 1: how many are smaller, and half of the others that are equal."""
    smaller = [sum(other < value for other in values) for value in values]
    equal = [sum(other == value for other in values) - 1 for value in values]
    return [(low + same / 2) / (len(values) - 1) for low, same in zip(smaller, equal, strict=True)]


def oracle(maps: list[list[float]], labels: list[int]) -> dict[int, tuple[list[float], float, int]]:
    """By class the profile, z and its token; of maps as lists of tokens, token by token."""
    kept = [
        (places_oracle(values), label)
        for values, label in zip(maps, labels, strict=True)
        if not any(math.isnan(value) for value in values) and len(set(values)) > 1
    ]
    found = {}
    for label in {label for _, label in kept}:
        profile, best, where = [], -math.inf, -1
        mine = [places for places, other in kept if other == label]
        for token in range(len(maps[0])):
            everyone = [places[token] for places, _ in kept]
            mean = sum(everyone) / len(everyone)
            deviation = math.sqrt(sum((place - mean) ** 2 for place in everyone) / len(everyone))
            profile.append(sum(places[token] for places in mine) / len(mine))
            z = (profile[-1] - mean) / (deviation / math.sqrt(len(mine))) if deviation > 0 else 0.0
            if z > best:
                best, where = z, token
        found[label] = (profile, best, where)
    return found


def random_case() -> tuple[Tensor, Tensor]:
    """Maps with ties on a grid that is not square, of classes of different size; some of them say nothing."""
    generator = torch.Generator().manual_seed(0)
    maps = (torch.rand(23, 3, 5, generator=generator) * 8).round()
    maps[:, 2, 4] = 9  # always the highest
    maps[2], maps[5, 1, 1], maps[9, 0, 0] = 0.5, float("nan"), float("inf")
    labels = torch.tensor([[7, 2, 4, 2][index % 4] for index in range(22)] + [0])
    return maps, labels


def test_every_class_has_the_profile_z_and_token_of_the_oracle() -> None:
    maps, labels = random_case()
    expected = oracle(
        [[math.nan if math.isinf(value) else value for value in one] for one in maps.flatten(1).tolist()],
        labels.tolist(),
    )
    found = positional_profile(maps, labels)
    assert found.classes.tolist() == sorted(expected) == [0, 2, 4, 7]
    for row, label in enumerate(found.classes.tolist()):
        profile, z, token = expected[label]
        assert found.profiles[row].flatten().tolist() == pytest.approx(profile, abs=1e-12)
        assert float(found.z[row]) == pytest.approx(z, abs=1e-9)
        assert int(found.tokens[row]) == token
    assert found.profiles.shape == (4, 3, 5)
    assert len(set(found.tokens.tolist())) > 1, "a token that is always the first would prove nothing"


def test_by_hand() -> None:
    """Two maps of class 0 are higher on the right, one of class 1 on the left."""
    maps = torch.tensor([[[0.0, 9.0]], [[5.0, 1.0]], [[-3.0, -2.0]]])
    found = positional_profile(maps, torch.tensor([0, 1, 0]))
    assert found.classes.tolist() == [0, 1]
    assert found.profiles.tolist() == [[[0.0, 1.0]], [[1.0, 0.0]]]
    # Of all: 2/3 on the right, standard deviation √2/3; so 1/3 / (√2/3 / √2) and 2/3 / (√2/3 / 1).
    assert found.z.tolist() == pytest.approx([1, math.sqrt(2)])
    assert found.tokens.tolist() == [1, 0]


def test_ties_share_their_mean_rank() -> None:
    maps = torch.tensor([[[3.0, 3.0, 1.0, 7.0, 3.0]]])
    found = positional_profile(maps, torch.tensor([4]))
    assert found.profiles.flatten().tolist() == [0.5, 0.5, 0.0, 1.0, 0.5]


def test_only_the_order_within_a_map_counts() -> None:
    maps, labels = random_case()
    expected = positional_profile(maps, labels)
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(1))
    found = positional_profile((maps.double().exp() * 3 - 2)[order], labels[order])
    assert found.classes.tolist() == expected.classes.tolist()
    torch.testing.assert_close(found.profiles, expected.profiles)
    torch.testing.assert_close(found.z, expected.z)


def test_maps_that_say_nothing_are_left_out() -> None:
    maps, labels = random_case()
    kept = [index for index in range(len(maps)) if index not in (2, 5, 9)]
    found, expected = positional_profile(maps, labels), positional_profile(maps[kept], labels[kept])
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_where_maps_do_not_differ_z_is_zero() -> None:
    one = torch.rand(1, 7, 9, generator=torch.Generator().manual_seed(0))
    found = positional_profile(one.repeat(37, 1, 1), torch.arange(37) % 3)
    assert found.z.tolist() == [0, 0, 0]
    assert positional_profile(one, torch.tensor([5])).z.tolist() == [0]


def test_one_class_is_as_all_are() -> None:
    maps, _ = random_case()
    found = positional_profile(maps, torch.full((23,), 6))
    assert found.classes.tolist() == [6]
    assert found.z.tolist() == pytest.approx([0], abs=1e-9)


@pytest.mark.parametrize("maps", [torch.zeros(0, 3, 5), torch.ones(4, 3, 5)])
def test_without_any_map_there_is_no_class(maps: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = positional_profile(maps, torch.zeros(len(maps), dtype=torch.int64))
    assert [list(part.shape) for part in found] == [[0], [0, 3, 5], [0], [0]]


@pytest.mark.parametrize(("side", "typical"), [(8, 2.4), (14, 2.8)])
def test_by_chance_z_is_what_the_docstring_says(side: int, typical: float) -> None:
    maps = torch.rand(4000, side, side, generator=torch.Generator().manual_seed(side))
    found = positional_profile(maps, torch.arange(4000) % 100)
    assert float(found.z.mean()) == pytest.approx(typical, abs=0.15)


def test_a_mark_whose_place_tells_the_class_gives_that_class_a_peak_and_one_anywhere_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 10
    anywhere = torch.rand(300, 8, 8, generator=generator)
    placed = anywhere.clone()
    anywhere.flatten(1)[torch.arange(300), torch.randint(64, (300,), generator=generator)] += 2
    placed[labels == 3, 6, 1] += 2
    found = positional_profile(placed, labels)
    assert int(found.z.argmax()) == 3
    assert int(found.tokens[3]) == 6 * 8 + 1
    assert float(found.z[3]) > 6
    assert float(positional_profile(anywhere, labels).z.max()) < 4.5


@pytest.mark.parametrize(
    ("maps", "labels", "message"),
    [
        (torch.rand(3, 4), torch.zeros(3).long(), r"maps have to be a float tensor \[B, H, W\], not .*\[3, 4\]"),
        (torch.ones(3, 4, 4).long(), torch.zeros(3).long(), r"maps have to be a float tensor .* not torch.int64"),
        (torch.rand(3, 4, 4), torch.zeros(2).long(), r"labels have to be class indices \[3\], not torch.int64 \[2\]"),
        (torch.rand(3, 4, 4), torch.zeros(3), r"labels have to be class indices \[3\], not torch.float32 \[3\]"),
    ],
)
def test_other_shapes_and_dtypes_are_refused(maps: Any, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        positional_profile(maps, labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_ranks_are_those_of_scipy(dtype: torch.dtype) -> None:
    maps = (torch.randn(6, 4, 7, generator=torch.Generator().manual_seed(0)) * 5).round().to(dtype)
    maps[0], maps[1, 0, 0], maps[1, 0, 1] = 2, -0.0, 0.0
    found = ranks(maps.transpose(1, 2))  # which does not lie in memory as it is read
    assert found.dtype == torch.float64
    assert found.shape == (6, 7, 4)
    for one, values in zip(found, maps.transpose(1, 2), strict=True):
        assert one.flatten().tolist() == rankdata(values.flatten().tolist()).tolist()
    assert ranks(maps[:0]).shape == (0, 4, 7)
