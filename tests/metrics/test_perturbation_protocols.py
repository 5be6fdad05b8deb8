"""The protocols of Chefer, RISE and ROAD against oracles of plain loops, and what all protocols have in common."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import protocol_oracles as oracle
import pytest
import torch
from torch import Tensor, nn

from litcam.errors import InputError
from litcam.heatmaps import upsample
from litcam.metrics import Perturbation
from litcam.metrics.functional import PROTOCOLS, FillOptions, find_protocol, perturbation_curves
from litcam.metrics.functional.fills import imputation_noise, impute

HEIGHT, WIDTH, COUNT, CLASSES = 8, 10, 5, 3
MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
OPTIONS = FillOptions(MEAN, STD, seed=3)
COUNTS = ("num_images", "num_degenerate")
NORMALISATION: dict[str, Any] = {"mean": MEAN, "std": STD}


class Linear(nn.Module):
    """Logits that are linear in the image; remembers the images of every forward."""

    def __init__(self, pixels: int = HEIGHT * WIDTH, spread: float = 0.15) -> None:
        super().__init__()
        weight = spread * torch.randn(CLASSES, 3 * pixels, generator=torch.Generator().manual_seed(2))
        self.weight = nn.Parameter(weight)
        self.seen: list[Tensor] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        logits = nn.functional.linear(images.flatten(1), self.weight)
        self.dtypes.add(logits.dtype)
        return logits

    @property
    def calls(self) -> int:
        return sum(map(len, self.seen))


@pytest.fixture
def net() -> Linear:
    return Linear()


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images, maps with some ties, and the classes predicted."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(COUNT, 3, HEIGHT, WIDTH, generator=generator)
    images = (colours - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    heatmaps = upsample(torch.rand(COUNT, 3, 4, generator=generator), (HEIGHT, WIDTH))
    heatmaps[:, 2, 1:7] = 0.5
    return images, heatmaps, Linear()(images).argmax(1)


def assert_equal_to_oracle(curves: tuple[Tensor, Tensor], expected: list[dict[str, list[float]]]) -> None:
    """Both curves [B, points] are the oracle's, which gives them by name for each image."""
    for curve, name in zip(curves, expected[0], strict=True):
        torch.testing.assert_close(curve, torch.tensor([one[name] for one in expected]).double(), rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- Chefer


@pytest.mark.parametrize("batch_size", [1, 4, 128])
def test_chefer_equals_the_oracle(net: Linear, case: tuple[Tensor, Tensor, Tensor], batch_size: int) -> None:
    images, heatmaps, targets = case
    curves = perturbation_curves(net, *case, batch_size=batch_size, protocol=PROTOCOLS["chefer"], options=OPTIONS)
    expected = [oracle.chefer(net, *one, MEAN, STD) for one in zip(images, heatmaps, targets.tolist(), strict=True)]
    assert_equal_to_oracle(curves, expected)
    assert 0 < curves[0].mean() < 1, "hits and misses, or the comparison would prove little"
    metric = Perturbation("chefer", **NORMALISATION, resamples=0)
    metric.update(net, *case)
    scores = metric.compute()
    assert list(scores) == ["positive", "negative", "positive_curve", "negative_curve", *COUNTS]
    for name in ("positive", "negative"):
        mean_curve = np.mean([one[name] for one in expected], 0).tolist()
        assert scores[name].item() == pytest.approx(100 * oracle.trapezoid_sum(mean_curve, 0.1))
        assert scores[f"{name}_curve"].tolist() == pytest.approx(mean_curve)


def test_chefer_by_hand() -> None:
    """Ten white pixels; class 1 is predicted while more than four and a half are left: at 0, 10, …, 50 %."""

    def net(images: Tensor) -> Tensor:
        white = ((images[:, 0] * 0.5 + 0.5).flatten(1)).sum(1)
        return torch.stack([torch.full_like(white, 4.5), white], 1)

    metric = Perturbation("chefer", mean=[0.5] * 3, std=[0.5] * 3)
    heatmaps = torch.arange(10.0).view(1, 2, 5)
    metric.update(net, torch.ones(2, 3, 2, 5), heatmaps.expand(2, -1, -1), torch.tensor([1, 0]))
    scores = metric.compute()
    assert scores["positive_curve"].tolist() == [0.5] * 10, "of two images always one is right"
    metric.reset()
    metric.update(net, torch.ones(1, 3, 2, 5), heatmaps, torch.tensor([1]))
    scores = metric.compute()
    assert scores["negative_curve"].tolist() == [1.0] * 6 + [0.0] * 4
    assert scores["negative"].item() == pytest.approx(100 * (5 * 0.1 + 0.05))


def test_chefer_removes_pixels_in_the_order_of_its_names_and_to_black(case: tuple[Tensor, Tensor, Tensor]) -> None:
    net = Linear()
    perturbation_curves(net, *(x[:1] for x in case), protocol=PROTOCOLS["chefer"], options=OPTIONS, batch_size=1)
    black = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])[:, None, None]
    removed = torch.cat(net.seen)[1:].isclose(black).all(1)  # the first is the whole image
    assert removed.flatten(1).sum(1).tolist() == [8 * tenth for tenth in range(1, 10)] * 2
    values = case[1][0]
    for mask in removed[:9]:
        assert values[mask].min() >= values[~mask].max()
    for mask in removed[9:]:
        assert values[mask].max() <= values[~mask].min()


# ----------------------------------------------------------------------------------------------------------- RISE


@pytest.mark.parametrize("steps", [7, 10])  # 80 pixels: equal steps or not
def test_rise_equals_the_oracle(net: Linear, case: tuple[Tensor, Tensor, Tensor], steps: int) -> None:
    images, heatmaps, targets = case
    metric = Perturbation("rise", steps=steps, resamples=0)
    metric.update(net, *case)
    scores = metric.compute()
    assert list(scores) == ["deletion", "insertion", "deletion_curve", "insertion_curve", *COUNTS]
    expected = [oracle.rise(net, *one, steps) for one in zip(images, heatmaps, targets.tolist(), strict=True)]
    curves = perturbation_curves(net, *case, protocol=find_protocol("rise", steps), batch_size=6)
    assert_equal_to_oracle(curves, expected)
    for name in ("deletion", "insertion"):
        mean_curve = np.mean([one[name] for one in expected], 0).tolist()
        assert scores[f"{name}_curve"].tolist() == pytest.approx(mean_curve, abs=1e-6)
        assert scores[name].item() == pytest.approx(oracle.trapezoid_sum(mean_curve, 1 / steps), abs=1e-6)


def test_rise_has_224_steps_of_which_the_ends_are_known_or_shared() -> None:
    net = Linear(224 * 2)
    images, heatmaps = torch.randn(2, 3, 16, 28), torch.rand(2, 16, 28)
    logits, net.seen = net(images), []
    curves = perturbation_curves(
        net, images, heatmaps, torch.tensor([0, 1]), logits, batch_size=100, protocol=PROTOCOLS["rise"]
    )
    assert curves[0].shape == curves[1].shape == (2, 225)
    assert net.calls == 2 * 447 + 1
    torch.testing.assert_close(curves[0][:, 0], curves[1][:, -1])
    torch.testing.assert_close(curves[0][:, 0], logits.double().softmax(1)[[0, 1], [0, 1]])


def test_the_blur_keeps_the_sum_of_a_pixel_far_from_the_border_and_spreads_it_over_eleven() -> None:
    images = torch.zeros(1, 3, 25, 25)
    images[0, 1, 12, 12] = 1
    net = Linear(625)
    perturbation_curves(net, images, torch.rand(1, 25, 25), torch.tensor([0]), protocol=find_protocol("rise", 2))
    blurred = next(image for image in torch.cat(net.seen) if 0 < image.max() < 1)
    assert blurred.sum().item() == pytest.approx(1, abs=1e-6)
    assert int((blurred[1] > 0).sum()) == 121
    assert int((blurred[0] != 0).sum()) == 0
    expected = torch.tensor(oracle.mirrored_gaussian(11, 5.0))
    torch.testing.assert_close(blurred[1, 7:18, 7:18], torch.outer(expected, expected), rtol=0, atol=1e-8)


# ----------------------------------------------------------------------------------------------------------- ROAD


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_imputation_equals_a_dense_linear_system(share: float) -> None:
    generator = np.random.default_rng(0)
    image, kept = generator.normal(size=(3, 9, 7)), generator.random((9, 7)) >= share
    removed = {(int(y), int(x)) for y, x in np.argwhere(~kept)}
    filled = impute(image, kept)
    np.testing.assert_allclose(filled, oracle.imputed(image, removed), rtol=0, atol=1e-10)
    assert np.array_equal(filled[:, kept], image[:, kept])


def test_imputation_by_hand() -> None:
    image, kept = np.arange(9.0).reshape(1, 3, 3) ** 2, np.ones((3, 3), dtype=bool)
    kept[0, 0] = kept[1, 1] = False
    corner, centre = impute(image, kept)[0][~kept]
    assert corner * 5 == pytest.approx(2 * 1 + 2 * 9 + centre), "beside it 1 and 9, diagonally the centre"
    assert centre * 12 == pytest.approx(2 * (1 + 9 + 25 + 49) + corner + 4 + 36 + 64)


def test_road_equals_the_oracle(net: Linear, case: tuple[Tensor, Tensor, Tensor]) -> None:
    images, heatmaps, targets = case
    noise = imputation_noise(images, OPTIONS.seed) / torch.tensor(STD)[:, None, None]
    expected = [oracle.road(net, *one) for one in zip(images, heatmaps, targets.tolist(), noise, strict=True)]
    curves = perturbation_curves(net, *case, protocol=PROTOCOLS["road"], options=OPTIONS)
    assert_equal_to_oracle(curves, expected)
    metric = Perturbation("road", **NORMALISATION, seed=3, resamples=0)
    metric.update(net, *case)
    scores = metric.compute()
    assert list(scores) == ["lerf", "morf", "lerf_curve", "morf_curve", *COUNTS]
    for name in ("lerf", "morf"):
        assert scores[name].item() == pytest.approx(np.mean([one[name] for one in expected]), abs=1e-6)


@pytest.mark.parametrize(("options", "deviation"), [(FillOptions(), 0.01), (FillOptions(MEAN, (0.1,) * 3), 0.1)])
def test_the_noise_has_its_deviation_in_the_image_where_the_normalisation_is_known(
    options: FillOptions, deviation: float
) -> None:
    net, image = Linear(1600), torch.randn(1, 3, 40, 40)
    heatmaps = torch.rand(1, 40, 40)
    perturbation_curves(net, image, heatmaps, torch.tensor([0]), protocol=PROTOCOLS["road"], options=options)
    perturbed = torch.cat(net.seen)[4]  # the lower half removed
    kept = (perturbed == image[0]).all(0)
    assert int(kept.sum()) == 800
    noise = perturbed.double() - torch.from_numpy(impute(image[0].double().numpy(), kept.numpy()))
    assert noise[:, ~kept].std().item() == pytest.approx(deviation, rel=0.1)
    assert abs(noise[:, ~kept].mean().item()) < deviation / 10


def test_an_image_has_the_same_noise_in_every_batch_and_another_one_for_another_seed(
    net: Linear, case: tuple[Tensor, Tensor, Tensor]
) -> None:
    road, order = PROTOCOLS["road"], torch.tensor([3, 0, 4, 1, 2])
    state = torch.random.get_rng_state()
    expected = perturbation_curves(net, *case, protocol=road)
    mixed = perturbation_curves(net, *(x[order] for x in case), protocol=road, batch_size=4)
    other = perturbation_curves(net, *case, protocol=road, options=FillOptions(seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for curve, same, different in zip(expected, mixed, other, strict=True):
        torch.testing.assert_close(same, curve[order], rtol=0, atol=1e-6)
        assert 1e-5 < (different - curve).abs().max() < 0.1


# -------------------------------------------------------------------------------------------------- every protocol


def updates(name: str, net: Linear, case: tuple[Tensor, ...], parts: list[int], **options: Any) -> Iterator[Any]:
    """A metric of one protocol for each part of the case."""
    steps = 20 if name == "rise" else None
    for batch in zip(*(x.split(parts) for x in case), strict=True):
        metric = Perturbation(name, steps=steps, **NORMALISATION, **options)
        metric.update(net, *batch)
        yield metric


@pytest.mark.parametrize("name", PROTOCOLS)
def test_batches_and_processes_add_up_exactly(net: Linear, case: tuple[Tensor, Tensor, Tensor], name: str) -> None:
    [together] = updates(name, net, case, [COUNT])
    first, second, third = updates(name, net, case, [1, 3, 1], batch_size=2)
    first.merge_state(second)
    first.merge_state(third)
    expected, scores = together.compute(), first.compute()
    assert expected["num_images"] == COUNT
    assert scores.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(scores[key], expected[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_degenerate_maps_are_counted_and_in_no_mean(
    net: Linear, case: tuple[Tensor, Tensor, Tensor], name: str
) -> None:
    images, heatmaps, targets = case
    [alone] = updates(name, net, tuple(x[:3] for x in case), [3])
    spoilt = heatmaps.clone()
    spoilt[3], spoilt[4, 0, 0] = 0.25, float("nan")
    [mixed] = updates(name, net, (images, spoilt, targets), [COUNT])
    expected, scores = alone.compute(), mixed.compute()
    assert (scores.pop("num_images"), scores.pop("num_degenerate")) == (3, 2)
    for key in scores:
        torch.testing.assert_close(scores[key], expected[key], rtol=0, atol=1e-6)
    [empty] = updates(name, net, (images, torch.zeros_like(heatmaps), targets), [COUNT])
    scores = empty.compute()
    assert scores.pop("num_degenerate") == COUNT
    assert scores.pop("num_images") == 0
    assert all(value.isnan().all() for value in scores.values())


@pytest.mark.parametrize(
    ("name", "forwards"), [("agcam", 18 * COUNT + 1), ("chefer", 18 * COUNT), ("road", 18 * COUNT)]
)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_no_forward_is_larger_than_the_batch_size_and_none_is_superfluous(
    net: Linear, case: tuple[Tensor, Tensor, Tensor], name: str, forwards: int, batch_size: int
) -> None:
    logits, net.seen = net(case[0]), []
    metric = Perturbation(name, batch_size, **NORMALISATION)
    metric.update(net, *case, logits=logits)
    assert net.calls == forwards
    assert max(map(len, net.seen)) == batch_size


@pytest.mark.parametrize("name", PROTOCOLS)
def test_bf16_runs_the_net_under_autocast_and_fp32_does_not_even_inside_one(
    case: tuple[Tensor, Tensor, Tensor], name: str
) -> None:
    nets = Linear(), Linear()
    with torch.autocast("cpu", torch.bfloat16):
        [full] = updates(name, nets[0], case, [COUNT])
    [half] = updates(name, nets[1], case, [COUNT], precision="bf16")
    assert (nets[0].dtypes, nets[1].dtypes) == ({torch.float32}, {torch.bfloat16})
    assert {image.dtype for image in nets[1].seen} == {torch.float32}
    [plain] = updates(name, Linear(), case, [COUNT])
    first, expected = PROTOCOLS[name].curves[0].name, plain.compute()
    for key, value in full.compute().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-9)
    if name != "chefer":  # hits hardly change
        assert 1e-7 < abs(half.compute()[first] - expected[first]) < 0.02


def test_steps_divide_the_pixels_anew(net: Linear, case: tuple[Tensor, Tensor, Tensor]) -> None:
    fine, coarse = (perturbation_curves(net, *case, protocol=find_protocol("agcam", steps)) for steps in (20, 10))
    for curve, every_second in zip(fine, coarse, strict=True):
        torch.testing.assert_close(curve[:, ::2], every_second, rtol=0, atol=1e-6)
    assert list(find_protocol("road", 4).points) == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "deletion"}, "protocol is 'deletion'; choose one of agcam, chefer, rise, road"),
        ({"protocol": "chefer"}, "chefer fills pixels in the image of .* mean and std"),
        ({"mean": MEAN}, "both are needed"),
        ({"std": STD}, "both are needed"),
        ({"mean": MEAN, "std": (0.5,)}, "both are needed"),
        ({"mean": MEAN, "std": (0.5, 0.5, 0.0)}, "positive"),
        ({"protocol": "rise", "steps": 1}, "steps is 1; at least 2"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "fp16"}, "precision is 'fp16'; choose one of fp32, bf16"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Perturbation(**options)


@pytest.mark.parametrize("name", ["chefer", "road"])
def test_a_normalisation_of_other_channels_is_named(
    net: Linear, case: tuple[Tensor, Tensor, Tensor], name: str
) -> None:
    with pytest.raises(InputError, match="mean and std have 1 numbers, but the images 3 channels"):
        Perturbation(name, mean=[0.5], std=[0.5]).update(net, *case)
