"""Perturbation against an oracle that runs one forward per point and image, and against a model done by hand."""

import pytest
import torch
from torch import Tensor, nn

import oracles
from conftest import make_images
from litcam.errors import InputError
from litcam.metrics import Perturbation
from litcam.metrics.functional import perturbation_curves


def distinct_maps(images: Tensor) -> Tensor:
    """Random maps without ties."""
    count, _, height, width = images.shape
    generator = torch.Generator().manual_seed(5)
    return torch.stack([torch.randperm(height * width, generator=generator) for _ in range(count)]).view(
        count, height, width
    ).float() / (height * width)


@pytest.mark.parametrize("batch_size", [1, 7, 128])
@pytest.mark.parametrize("logits_known", [False, True])
def test_curves_equal_the_oracle(class_token_net: nn.Module, batch_size: int, logits_known: bool) -> None:
    images = make_images(class_token_net)
    heatmaps, targets = distinct_maps(images), torch.tensor([0, 3, 6])
    logits = class_token_net(images) if logits_known else None
    lerf, morf = perturbation_curves(class_token_net, images, heatmaps, targets, logits, batch_size)
    assert lerf.shape == morf.shape == (3, 11)
    for index in range(3):
        expected = oracles.perturbation(class_token_net, images[index], heatmaps[index], int(targets[index]))
        for curve, other in zip((lerf[index], morf[index]), expected, strict=True):
            torch.testing.assert_close(curve, torch.as_tensor(other), rtol=0, atol=1e-6)


class Brightness(nn.Module):
    """Two classes; the logit of class 1 is log of the number of pixels left: its probability is k/(1 + k)."""

    def forward(self, images: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + len(images)
        ones = images[:, 0].flatten(1).sum(1)
        return torch.stack([torch.zeros_like(ones), ones.clamp(min=1e-30).log()], 1)


def test_a_case_done_by_hand() -> None:
    images = torch.ones(1, 3, 2, 5)
    images[0, :, 0, 0] = 91.0  # one pixel outweighs the other nine; the sum is 100
    heatmaps = torch.arange(10, 0, -1.0).view(1, 2, 5)  # which the map ranks first
    metric = Perturbation()
    metric.update(Brightness(), images, heatmaps, torch.tensor([1]))
    scores = metric.compute()
    most_first = [100, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    least_first = [100, 99, 98, 97, 96, 95, 94, 93, 92, 91, 0]
    for name, sums in (("morf_curve", most_first), ("lerf_curve", least_first)):
        expected = torch.tensor([k / (1 + k) for k in sums], dtype=torch.float64)
        torch.testing.assert_close(scores[name], expected, rtol=0, atol=1e-6)
    assert scores["abpc"].item() == pytest.approx(
        sum(a / (1 + a) - b / (1 + b) for a, b in zip(least_first, most_first, strict=True)) / 11, abs=1e-6
    )


def test_an_image_costs_eighteen_forwards_and_one_for_the_empty_image() -> None:
    net, images = Brightness(), torch.rand(4, 3, 8, 8)
    logits, net.calls = net(images), 0
    arguments = images, distinct_maps(images), torch.zeros(4, dtype=torch.int64)
    perturbation_curves(net, *arguments, logits=logits)
    assert net.calls == 4 * 18 + 1
    Perturbation().update(net, *arguments)
    assert net.calls == (4 * 18 + 1) + (4 * 19 + 1), "one more where the logits are not known"


@pytest.mark.parametrize("parts", [(1, 3), (2, 1, 1)])
def test_batches_of_any_size_give_the_means_over_all_images(class_token_net: nn.Module, parts: tuple[int, ...]) -> None:
    images = make_images(class_token_net, 4)
    arguments = images, distinct_maps(images), torch.tensor([0, 3, 6, 2])
    together, apart = Perturbation(resamples=0), Perturbation(resamples=0)
    together.update(class_token_net, *arguments)
    for batch in zip(*(tensor.split(parts) for tensor in arguments), strict=True):
        apart.update(class_token_net, *batch)
    expected = together.compute()
    names = ["lerf", "morf", "abpc", "lerf_curve", "morf_curve", "num_images", "num_degenerate"]
    assert list(expected) == names
    for name, value in apart.compute().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


def test_removed_pixels_are_zero_on_every_channel_and_the_others_untouched() -> None:
    seen: list[Tensor] = []

    def net(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.zeros(len(images), 2)

    images = torch.rand(1, 3, 4, 5) + 1
    perturbation_curves(net, images, distinct_maps(images), torch.tensor([0]), batch_size=1)
    counts = [int((image == 0).all(0).sum()) for image in torch.cat(seen)[2:]]
    assert counts == [2 * step for step in range(1, 10)] * 2
    kept = torch.cat(seen) != 0
    assert torch.equal(torch.cat(seen)[kept], images.expand(len(kept), -1, -1, -1)[kept])


def test_degenerate_maps_are_counted_and_left_out(class_token_net: nn.Module) -> None:
    images = make_images(class_token_net)
    heatmaps, targets = distinct_maps(images), torch.tensor([1, 1, 1])
    alone, mixed = Perturbation(), Perturbation()
    alone.update(class_token_net, images[:1], heatmaps[:1], targets[:1])
    heatmaps[1], heatmaps[2, 0, 0] = 0.5, float("nan")
    mixed.update(class_token_net, images, heatmaps, targets)
    assert int(mixed.compute()["num_degenerate"]) == 2
    torch.testing.assert_close(mixed.compute()["lerf_curve"], alone.compute()["lerf_curve"])


def test_a_module_in_training_mode_is_evaluated_and_left_in_training_mode(class_token_net: nn.Module) -> None:
    images = make_images(class_token_net, 1)
    arguments = images, distinct_maps(images), torch.tensor([2])
    expected = perturbation_curves(class_token_net, *arguments)
    class_token_net.blocks[0].mlp.drop1.p = 0.9
    class_token_net.train()
    torch.testing.assert_close(perturbation_curves(class_token_net, *arguments), expected)
    assert all(module.training for module in class_token_net.modules())


@pytest.mark.parametrize(
    ("heatmaps", "targets", "message"),
    [
        (torch.rand(2, 5, 5), [0, 1], r"images \[2, 3, 4, 4\], heatmaps \[2, 5, 5\] and targets \[2\]"),
        (torch.rand(2, 4, 4), [0], r"heatmaps \[2, 4, 4\] and targets \[1\]"),
        (torch.zeros(2, 4, 5), [0, 1], r"heatmaps \[2, 4, 5\]"),  # constant maps too
        (torch.ones(2, 4, 4).int(), [0, 1], "not torch.int32"),
        (torch.rand(2, 4, 4), [0.0, 1.0], "integers"),
        (torch.rand(2, 4, 4), [0, 2], r"from 0 to 2, but logits are \[2, 2\] for 2 images"),
        (torch.rand(2, 4, 4), [-1, 0], "from -1 to 0"),
    ],
)
def test_what_does_not_fit_is_named(heatmaps: Tensor, targets: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Perturbation().update(Brightness(), torch.rand(2, 3, 4, 4), heatmaps, torch.tensor(targets))


@pytest.mark.parametrize(("logits", "targets"), [((3, 2), [0, 1]), ((2, 2), [0, 2]), ((2,), [0, 1])])
def test_logits_of_other_images_or_classes_are_named(logits: tuple[int, ...], targets: list[int]) -> None:
    arguments = torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4), torch.tensor(targets)
    with pytest.raises(InputError, match=rf"logits are \[{str(logits)[1:2]}.*\] for 2 images"):
        Perturbation().update(Brightness(), *arguments, logits=torch.zeros(logits))
    with pytest.raises(InputError, match="for 2 images"):
        perturbation_curves(Brightness(), *arguments, logits=torch.zeros(logits))
