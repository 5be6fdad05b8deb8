"""The Poisson bootstrap: how far a score over images would move with other images. Knows no metric."""

import math

import torch
from torch import Tensor

INTERVAL = (0.025, 0.975)  # quantiles of a 95 % interval
_MOST = 16  # of one image in one resample; a Poisson draw of mean 1 exceeds it once in 10¹⁵


def content_keys(*tensors: Tensor) -> Tensor:
    """A number for each image that follows from its content alone.

    Args:
        tensors: [B, ...] each, of any dtype; what the images are told apart by.

    Returns:
        Int64 [B], the same wherever and in whatever batch an image comes; the chance that two images share one is 2⁻⁶⁴.
    """
    keys = torch.zeros(len(tensors[0]), dtype=torch.int64, device=tensors[0].device)
    for tensor in tensors:
        values = tensor.float().unsqueeze(-1).flatten(1).contiguous().view(torch.int32).long()
        factors = _mix(torch.arange(1, values.shape[1] + 1, device=values.device)) | 1
        keys = _mix(keys + (values * factors).sum(1))
    return keys


def poisson_weights(keys: Tensor, resamples: int) -> Tensor:
    """How often each image is drawn in each resample: a Poisson number of mean 1 that follows from its key.

    Drawing images one by one with replacement gives each of n a binomial number of mean 1, and so, for n beyond a few,
    this (Hanley & MacGibbon, "Creating non-parametric bootstrap samples using Poisson frequencies", 2006). Such a
    resample needs to know neither n nor the other images, so its sums add up over batches and processes.

    Args:
        keys: int64 [B].
        resamples: R.

    Returns:
        Float64 [R, B], whole numbers.
    """
    streams = _mix(torch.arange(1, resamples + 1, device=keys.device))
    bits = _mix(_mix(keys) ^ streams[:, None])
    uniform = _shift(bits, 11).double() / 2**53  # [R, B] in [0, 1)
    shares = torch.tensor([math.exp(-1) / math.factorial(k) for k in range(_MOST)], dtype=torch.float64)
    return torch.bucketize(uniform, shares.cumsum(0).to(keys.device), right=True).double()


def _mix(numbers: Tensor) -> Tensor:
    """Spread int64 numbers over all 64 bits, one to one (the finaliser of SplitMix64; products wrap around)."""
    numbers = (numbers ^ _shift(numbers, 30)) * -0x40A7B892E31B1A47
    numbers = (numbers ^ _shift(numbers, 27)) * -0x6B2FB644ECCEEE15
    return numbers ^ _shift(numbers, 31)


def _shift(numbers: Tensor, places: int) -> Tensor:
    """Bits moved to the right, zeros coming in."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)
