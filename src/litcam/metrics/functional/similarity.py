"""How alike are two maps of the same image? One number per image, on the grid of the patches. Knows no explainer."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from litcam.errors import InputError, check_choice
from litcam.heatmaps import is_degenerate
from litcam.metrics.functional import correlation
from litcam.metrics.functional.checks import check_maps

TOP_SHARE = 0.1  # of the tokens


def similarity(name: str, first: Tensor, second: Tensor) -> Tensor:
    """Compare two maps of each image by one of :data:`SIMILARITIES`.

    Args:
        name: of the similarity.
        first: [B, H, W], not negative.
        second: the same, of the same images in the same order.

    Returns:
        Float64 [B]; NaN where one of the two maps is constant or holds NaN.

    Raises:
        InputError: for an unknown name, and if shapes, dtypes or ranges are not these.
    """
    check_choice("similarity", name, SIMILARITIES)
    _check_weights(first, "first maps")
    _check_weights(second, "second maps")
    if first.shape != second.shape:
        raise InputError(
            f"Maps are {list(first.shape)} and {list(second.shape)}; both have to be of the same images and grid."
        )
    kept = ~is_degenerate(first) & ~is_degenerate(second)
    values = torch.full((len(first),), torch.nan, dtype=torch.float64, device=first.device)
    if kept.any():
        values[kept] = SIMILARITIES[name](first[kept].double(), second[kept].double())
    return values


def gini(maps: Tensor) -> Tensor:
    """The Gini index of maps, Σᵢ (2i − n − 1)·xᵢ / (n·Σᵢ xᵢ) with the values x₁ … xₙ rising: 0 even, near 1 one peak.

    Args:
        maps: [B, H, W], not negative.

    Returns:
        Float64 [B]; NaN where a map is constant or holds NaN.

    Raises:
        InputError: if shape, dtype or range are not these.
    """
    _check_weights(maps, "maps")
    rising = maps.double().flatten(1).sort(1).values  # [B, n]
    n = rising.shape[1]
    weights = 2 * torch.arange(1, n + 1, dtype=torch.float64, device=maps.device) - n - 1
    values = (weights * rising).sum(1) / (n * rising.sum(1))
    return values.masked_fill(is_degenerate(maps), torch.nan)


def _centred_pearson(first: Tensor, second: Tensor) -> Tensor:
    """Linear correlation of what is the image's own: each map without the mean map of all images on its side."""
    return correlation.pearson(first - first.mean(0), second - second.mean(0))


def _top_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of the top 10 % of the tokens; by chance about 0.05."""
    one, other = _top(first), _top(second)
    return (one & other).sum(1, dtype=torch.float64) / (one | other).sum(1)


def _top(maps: Tensor) -> Tensor:
    """The tokens not below the k-th largest, without those at the map's minimum (a sparse map has fewer): [B, n]."""
    flat = maps.flatten(1)
    k = max(1, round(TOP_SHARE * flat.shape[1]))
    return (flat >= flat.topk(k, dim=1).values[:, -1:]) & (flat > flat.amin(1, keepdim=True))


def _jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Jensen–Shannon divergence in bits of the maps as distributions over tokens: 0 equal, 1 disjoint."""
    p, q = (maps.flatten(1) / maps.sum((1, 2))[:, None] for maps in (first, second))
    mean = (p + q) / 2
    mixed, one, other = (_entropy(distribution) for distribution in (mean, p, q))
    return (mixed - (one + other) / 2).clamp(0, 1)


def _entropy(distributions: Tensor) -> Tensor:
    """In bits, of distributions [B, n]."""
    nats: Tensor = torch.special.entr(distributions).sum(1)
    return nats / math.log(2)


def _centroid_shift(first: Tensor, second: Tensor) -> Tensor:
    """Distance between the centres of mass, with the map's height and width as units."""
    distances: Tensor = torch.linalg.vector_norm(_centroids(first) - _centroids(second), dim=1)
    return distances


def _centroids(maps: Tensor) -> Tensor:
    """Rows and columns of the centres of mass, as shares of height and width: [B, 2]."""
    height, width = maps.shape[1:]
    rows = (torch.arange(height, dtype=maps.dtype, device=maps.device) + 0.5) / height
    columns = (torch.arange(width, dtype=maps.dtype, device=maps.device) + 0.5) / width
    moments = torch.stack([(maps * rows[:, None]).sum((1, 2)), (maps * columns).sum((1, 2))], 1)
    return moments / maps.sum((1, 2))[:, None]


SIMILARITIES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "spearman": correlation.spearman,
    "centred_pearson": _centred_pearson,
    "top_iou": _top_iou,
    "jensen_shannon": _jensen_shannon,
    "centroid_shift": _centroid_shift,
}


def _check_weights(maps: Tensor, name: str) -> None:
    check_maps(maps, name)
    negative = (maps < 0) & maps.isfinite()
    if negative.any():
        raise InputError(
            f"{name} hold {maps[negative][0].item():.6g}; they must not be negative: scale them, for example with "
            "litcam.heatmaps.scale."
        )
