"""Thresholds of maps in [0, 1]: Otsu's, and the thousand that threshold-free metrics try. Knows no metric."""

import torch
from torch import Tensor

from litcam.metrics.functional.checks import check_scaled

NUM_THRESHOLDS = 1000  # 0, 0.001, …, 0.999
OTSU_BINS = 256


def reached_thresholds(heatmaps: Tensor) -> Tensor:
    """Number k of the highest threshold k/1000 that each value reaches (value ≥ k/1000); 1 reaches 1000.

    Exact: compared in double precision, without quantising the map. Of NaN it is 1000.

    Args:
        heatmaps: [...] in [0, 1].

    Returns:
        Int64 [...], from 0 to 1000.
    """
    edges = torch.arange(NUM_THRESHOLDS + 1, dtype=torch.float64, device=heatmaps.device) / NUM_THRESHOLDS
    return torch.bucketize(heatmaps.double().contiguous(), edges, right=True) - 1


def otsu_thresholds(heatmaps: Tensor) -> Tensor:
    """Otsu's threshold of each map, which separates its histogram into two classes (Otsu 1979, equation 18).

    The histogram has 256 bins, of which bin k counts the values in (k/256, (k+1)/256], and bin 0 those that are 0, too.
    Up to and including bin k a share ω of the pixels has the mean bin μ; over all bins the mean is μ_T. The threshold
    is (k+1)/256 with the k in 0 … 254 of the highest between-class variance (μ_T·ω − μ)² / (ω(1 − ω)), μ being summed
    over that share alone; of several the lowest. What exceeds it (strictly) are exactly the bins above k. All values in
    one bin give 1/256.

    Args:
        heatmaps: [B, H, W] in [0, 1]; NaN counts as 0.

    Returns:
        Float64 [B], from 1/256 to 255/256.

    Raises:
        InputError: if a value lies outside [0, 1].
    """
    check_scaled(heatmaps)
    values = heatmaps.double().nan_to_num(0, 0, 0).flatten(1)
    bins = ((values * OTSU_BINS).ceil() - 1).clamp(min=0).long()  # [B, H·W]
    histogram = torch.zeros(len(bins), OTSU_BINS, dtype=torch.float64, device=bins.device)
    histogram.scatter_add_(1, bins, torch.ones_like(values))
    numbers = torch.arange(OTSU_BINS, device=bins.device)
    below, weight = histogram.cumsum(1), (histogram * numbers).cumsum(1)  # whole numbers, exact in float64
    total, total_weight = below[:, -1:], weight[:, -1:]
    variance = (total_weight * below - total * weight) ** 2 / (below * (total - below))
    variance = variance[:, :-1].nan_to_num(0)  # 0/0 where a class is empty
    return (variance.argmax(1) + 1) / torch.tensor(OTSU_BINS, dtype=torch.float64, device=bins.device)
