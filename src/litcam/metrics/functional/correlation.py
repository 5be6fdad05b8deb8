"""Correlation of pairs of maps, one number per pair."""

import torch
from torch import Tensor


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Linear correlation of maps [B, H, W] with maps of the same shape: float64 [B]; NaN where one is constant."""
    a, b = (values.double().flatten(1) for values in (first, second))
    a, b = (values - values.mean(1, keepdim=True) for values in (a, b))
    covariance = (a * b).sum(1)
    return (covariance / (a.square().sum(1) * b.square().sum(1)).sqrt()).clamp(-1, 1)


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Rank correlation of maps [B, H, W] with maps of the same shape, ties by their mean rank: float64 [B]."""
    return pearson(ranks(first), ranks(second))


def ranks(maps: Tensor) -> Tensor:
    """Ranks of the values within each map, from 1, ties by their mean rank; float64 of the maps' shape."""
    values = maps.flatten(1).contiguous()
    rising = values.sort(1).values
    below, up_to = (torch.searchsorted(rising, values, right=right) for right in (False, True))
    return ((below + up_to + 1).double() / 2).view(maps.shape)
