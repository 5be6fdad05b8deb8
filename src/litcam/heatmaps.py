"""From a grid of patches to the image: upsampling, scaling, thresholding and drawing. Knows no method and no metric."""

from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from litcam.errors import InputError


def scale(heatmaps: Tensor) -> Tensor:
    """Each map [..., H, W] scaled to [0, 1] by its own minimum and maximum; a constant map becomes zeros, NaN stays."""
    low, high = heatmaps.amin((-2, -1), keepdim=True), heatmaps.amax((-2, -1), keepdim=True)
    span = high - low
    return torch.where(span == 0, torch.zeros_like(heatmaps), (heatmaps - low) / span)


def upsample(heatmaps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [..., gh, gw] enlarged to ``size`` (H, W) bilinearly, each then scaled to [0, 1]: float32 [..., H, W]."""
    flat = heatmaps.detach().float().reshape(-1, 1, *heatmaps.shape[-2:])
    enlarged = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return scale(enlarged.reshape(*heatmaps.shape[:-2], *size))


def on_grid(heatmaps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps [B, h, w] on the grid of the patches, each scaled to [0, 1]; those of pixels as means: [B, gh, gw]."""
    if heatmaps.shape[-2:] != grid:
        heatmaps = F.adaptive_avg_pool2d(heatmaps[:, None], grid)[:, 0]
    return scale(heatmaps)


def is_degenerate(heatmaps: Tensor) -> Tensor:
    """Which maps [B, H, W] say nothing: those that are constant or hold NaN or infinity. Bool [B]."""
    flat = heatmaps.flatten(1)
    return ~flat.isfinite().all(1) | (flat.amax(1) == flat.amin(1))


def component_boxes(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Bounding boxes [n, 4] (x0, y0, x1, y1; ends exclusive) of the 8-connected components of a mask [H, W]."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    left, top, width, height = stats[1:, :4].T  # the first component is the background
    return np.stack([left, top, left + width, top + height], axis=1).astype(np.int32)


def fill_components(masks: Tensor, margin: int = 0) -> Tensor:
    """The union of the filled bounding boxes of each mask's 8-connected components.

    Args:
        masks: bool [B, H, W].
        margin: pixels by which each box reaches further to the right and to the bottom (cut at the border).

    Returns:
        Bool [B, H, W]; an empty mask stays empty.
    """
    filled = np.zeros(tuple(masks.shape), dtype=bool)
    for region, mask in zip(filled, masks.cpu().numpy(), strict=True):
        for x0, y0, x1, y1 in component_boxes(mask):
            region[y0 : y1 + margin, x0 : x1 + margin] = True
    return torch.from_numpy(filled).to(masks.device)


def colorize(heatmap: NDArray[Any], colormap: str = "turbo") -> NDArray[np.uint8]:
    """A map [H, W] in [0, 1] as colours [H, W, 3]; NaN becomes black."""
    if colormap not in matplotlib.colormaps:
        raise InputError(f"matplotlib has no colormap {colormap!r}; take 'turbo', 'viridis' or 'inferno', for example.")
    colours = matplotlib.colormaps[colormap](np.nan_to_num(heatmap), bytes=True)[..., :3]
    colours[~np.isfinite(heatmap)] = 0
    return np.ascontiguousarray(colours)


def overlay(
    image: NDArray[np.uint8], heatmap: NDArray[Any], opacity: float = 0.55, colormap: str = "turbo"
) -> NDArray[np.uint8]:
    """A map [H, W] in [0, 1] laid over an image [H, W, 3]: uint8 [H, W, 3]."""
    return np.asarray((1 - opacity) * image + opacity * colorize(heatmap, colormap)).round().astype(np.uint8)
