"""From grid to image: scaling, components and colours."""

import numpy as np
import pytest
import torch

from litcam.errors import InputError
from litcam.heatmaps import colorize, component_boxes, fill_components, is_degenerate, overlay, scale, upsample


def test_each_map_is_scaled_by_its_own_range() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[-4.0, 0.0], [-2.0, -1.0]]])
    expected = torch.tensor([[[0.0, 0.5], [0.25, 1.0]], [[0.0, 1.0], [0.5, 0.75]]])
    torch.testing.assert_close(scale(maps), expected)


def test_a_constant_map_becomes_zeros_and_nan_stays_nan() -> None:
    maps = torch.full((2, 2, 2), 7.0)
    maps[1, 0, 0] = float("nan")
    scaled = upsample(maps, (4, 4))
    assert torch.equal(scaled[0], torch.zeros(4, 4))
    assert scaled[1].isnan().any()
    assert is_degenerate(scaled).tolist() == [True, True]
    assert is_degenerate(torch.tensor([[[0.0, 1.0]]])).tolist() == [False]


def test_upsampling_is_bilinear_about_pixel_centres() -> None:
    enlarged = upsample(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    torch.testing.assert_close(enlarged, torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))


def test_leading_dimensions_are_kept() -> None:
    assert upsample(torch.rand(2, 3, 4, 5), (8, 10)).shape == (2, 3, 8, 10)


def test_diagonal_pixels_are_one_component_and_holes_do_not_matter() -> None:
    mask = np.zeros((8, 9), bool)
    mask[0, 0] = mask[1, 1] = True
    mask[2:7, 3:8] = True
    mask[3:6, 4:7] = False
    mask[4, 5] = True  # inside the ring's hole: a component of its own
    assert sorted(component_boxes(mask).tolist()) == [[0, 0, 2, 2], [3, 2, 8, 7], [5, 4, 6, 5]]
    assert fill_components(torch.from_numpy(mask)[None])[0].sum() == 4 + 25


def test_an_empty_mask_has_no_component() -> None:
    assert component_boxes(np.zeros((3, 3), bool)).shape == (0, 4)
    assert not fill_components(torch.zeros(1, 3, 3, dtype=torch.bool)).any()


def test_an_overlay_blends_image_and_colours() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    heatmap = np.array([[0.0, np.nan]])
    blended = overlay(image, heatmap, opacity=0.5)
    assert blended[0, 0].tolist() == ((100 + colorize(heatmap)[0, 0].astype(float)) / 2).round().tolist()
    assert blended[0, 1].tolist() == [50, 50, 50]


def test_an_unknown_colour_map_is_named() -> None:
    with pytest.raises(InputError, match="no colormap 'jett'"):
        colorize(np.zeros((1, 1)), "jett")
