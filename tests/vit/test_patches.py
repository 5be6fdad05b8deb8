"""Patch embedding as a matrix product: the numbers of the convolution, and nothing else is taken for one."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from litcam.vit.patches import PatchEmbeddingMode, embed_patches


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_gives_the_convolution_and_its_gradient(height: int, width: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 13, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 3, height, width, generator=generator, dtype=torch.float64)
    shift = torch.randn(5, generator=generator, dtype=torch.float64) if bias else None
    expected = F.conv2d(images, weight, shift, stride=(height, width))
    with PatchEmbeddingMode():
        actual = F.conv2d(images, weight, shift, stride=(height, width))
    torch.testing.assert_close(actual, expected)
    assert type(actual.grad_fn) is not type(expected.grad_fn)  # it was another way
    direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for way in (expected, actual):
        (gradient,) = torch.autograd.grad(way, images, direction)
        torch.testing.assert_close(
            gradient, torch.autograd.grad(F.conv2d(images, weight, shift, (height, width)), images, direction)[0]
        )


@pytest.mark.parametrize(
    "arguments", [{"stride": 2}, {"stride": 4, "padding": 1}, {"stride": 4, "dilation": 2}, {"stride": (4, 2)}, {}]
)
def test_other_convolutions_are_left_alone(arguments: dict[str, Any]) -> None:
    images, weight = torch.randn(1, 3, 16, 16), torch.randn(5, 3, 4, 4)
    assert embed_patches(images, weight, None, **arguments) is None
    expected = F.conv2d(images, weight, None, **arguments)
    with PatchEmbeddingMode():
        torch.testing.assert_close(F.conv2d(images, weight, None, **arguments), expected)
