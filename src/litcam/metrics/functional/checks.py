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


def check_valid(valid: Tensor | None, heatmaps: Tensor) -> Tensor:
    """The mask of valid pixels, all of them for None; raise InputError unless it is bool and of the heatmaps' shape."""
    if valid is None:
        return torch.ones_like(heatmaps, dtype=torch.bool)
    if valid.shape != heatmaps.shape or valid.dtype != torch.bool:
        raise InputError(
            f"valid has to be bool {list(heatmaps.shape)} like the heatmaps, not {valid.dtype} {list(valid.shape)}."
        )
    return valid


def check_scaled(heatmaps: Tensor) -> None:
    """Raise InputError if a finite value of the maps lies outside [0, 1]."""
    outside = ((heatmaps < 0) | (heatmaps > 1)) & heatmaps.isfinite()
    if outside.any():
        raise InputError(
            f"heatmaps have to lie in [0, 1], but hold {heatmaps[outside][0].item():.6g}; "
            "scale them, for example with litcam.heatmaps.upsample."
        )


def count_pixels(mask: Tensor) -> Tensor:
    """Pixels of each mask [..., H, W]: float64 [...]."""
    return mask.sum((-2, -1), dtype=torch.float64)


def has_both(regions: Tensor) -> Tensor:
    """Whether there is an object and a background: bool [B], of regions [B, H, W]."""
    pixels = regions.flatten(1)
    return pixels.any(1) & ~pixels.all(1)
