"""What the functional cores of the metrics ask of their tensors."""

import torch
from torch import Tensor

from litcam.errors import InputError


def check_maps(maps: Tensor, name: str) -> None:
    """Raise InputError unless maps are a float tensor [B, H, W]."""
    if maps.ndim != 3 or not maps.is_floating_point():
        raise InputError(f"{name} have to be a float tensor [B, H, W], not {maps.dtype} {list(maps.shape)}.")


def check_regions(regions: Tensor, heatmaps: Tensor) -> None:
    """Raise InputError unless regions are bool and of the heatmaps' shape."""
    if regions.shape != heatmaps.shape or regions.dtype != torch.bool:
        raise InputError(
            f"regions have to be bool {list(heatmaps.shape)} like the heatmaps, "
            f"not {regions.dtype} {list(regions.shape)}."
        )


def count_pixels(mask: Tensor) -> Tensor:
    """Pixels of each mask [..., H, W]: float64 [...]."""
    return mask.sum((-2, -1), dtype=torch.float64)
