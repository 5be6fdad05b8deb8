"""RISE against an oracle that makes and applies the masks one at a time, and on functions whose map is known."""

import pytest
import torch
from torch import Tensor, nn

import gradient_free_oracles as oracles
from conftest import count_images, make_images, make_net
from litcam.errors import InputError
from litcam.explainers.rise import RISE


@pytest.mark.parametrize("options", [{}, {"cells": 3, "probability": 0.3, "seed": 5}])
def test_it_equals_the_oracle_at_the_size_of_the_image(net: nn.Module, options: dict[str, float]) -> None:
    images, targets = make_images(net, 2), [0, 6]
    heatmaps = RISE(net, num_masks=20, **options)(images, torch.tensor(targets)).heatmaps
    expected = [oracles.rise(net, image, c, num_masks=20, **options) for image, c in zip(images, targets, strict=True)]
    torch.testing.assert_close(heatmaps, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_the_size_of_the_forwards_does_not_change_the_map(class_token_net: nn.Module) -> None:
    images = make_images(class_token_net, 1)
    maps = [RISE(class_token_net, num_masks=10, batch_size=size)(images).heatmaps for size in (1, 4, 128)]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps[0], maps[2], rtol=1e-4, atol=1e-6)


def test_no_forward_is_larger_than_batch_size(class_token_net: nn.Module) -> None:
    sizes = count_images(class_token_net.head)
    RISE(class_token_net, num_masks=10, batch_size=4)(make_images(class_token_net, 2), torch.zeros(2, 3).long())
    assert sizes == [2, 4, 4, 4, 4, 2, 2]  # the recorded forward, then each chunk for each image; classes cost nothing


def test_several_classes_equal_one_class_at_a_time(class_token_net: nn.Module) -> None:
    images, targets = make_images(class_token_net, 2), torch.tensor([[0, 1, 4], [6, 0, 0]])
    explainer = RISE(class_token_net, num_masks=10)
    together = explainer(images, targets).heatmaps
    for position in range(3):
        torch.testing.assert_close(together[:, position], explainer(images, targets[:, position]).heatmaps)


def test_the_seed_decides_the_masks_and_every_image_gets_the_same_ones(class_token_net: nn.Module) -> None:
    image = make_images(class_token_net, 1)
    first, again, other = (RISE(class_token_net, num_masks=10, seed=seed) for seed in (0, 0, 1))
    twice = first(image.repeat(2, 1, 1, 1)).heatmaps
    assert torch.equal(twice[0], twice[1])
    torch.testing.assert_close(again(image).heatmaps[0], twice[0])
    assert not torch.allclose(other(image).heatmaps[0], twice[0], rtol=1e-2)


class Judge(nn.Module):
    """A Vision Transformer whose logits are thrown away: class 1 is the brightness of a corner, class 0 is zero."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.vit = make_net("class_token")
        self.gain = gain

    def forward(self, images: Tensor) -> Tensor:
        brightness = images[:, :, :16, 48:].mean((1, 2, 3))
        return 0 * self.vit(images)[:, :2] + self.gain * torch.stack([torch.zeros_like(brightness), brightness], 1)


def test_the_map_is_highest_where_the_module_looks() -> None:
    images = torch.ones(1, 3, 64, 64)
    heatmap = RISE(Judge(gain=8.0), num_masks=500)(images, torch.tensor([1])).heatmaps[0]
    row, column = divmod(int(heatmap.argmax()), 64)
    assert row < 16
    assert column >= 48
    assert heatmap[:16, 48:].mean() > 1.05 * heatmap[32:, :32].mean()


def test_a_module_that_ignores_its_image_has_its_probability_everywhere_on_average() -> None:
    heatmap = RISE(Judge(gain=0.0), num_masks=1000, probability=0.3)(torch.ones(1, 3, 64, 64)).heatmaps
    assert heatmap.mean() == pytest.approx(0.5, rel=0.02)


def test_masks_lie_between_zero_and_one_and_are_uncovered_with_the_probability() -> None:
    masks = torch.cat(list(RISE(make_net("class_token"), num_masks=500, probability=0.2)._masks(50, 90)))
    assert masks.shape == (500, 50, 90)
    assert masks.min() >= 0
    assert masks.max() <= 1
    torch.testing.assert_close(masks.mean((1, 2)).mean(), torch.tensor(0.2), rtol=0.05, atol=0)
    assert masks.mean(0).std() < 0.05  # no part of the image is favoured


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_masks": 0}, "num_masks is 0; at least 1 is needed"),
        ({"cells": 0}, "cells is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"probability": 0.0}, "probability is 0.0; it has to lie between 0 and 1"),
        ({"probability": 1.0}, "probability is 1.0"),
    ],
)
def test_wrong_options_are_refused(class_token_net: nn.Module, options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RISE(class_token_net, **options)
