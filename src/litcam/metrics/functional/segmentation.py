"""Segmentation by maps against true masks, per image. Knows no explainer and no dataset."""

import torch
from torch import Tensor

from litcam.metrics.functional.checks import check_maps, check_regions, check_scaled, check_valid


def segmentation(heatmaps: Tensor, regions: Tensor, valid: Tensor | None = None) -> dict[str, Tensor]:
    """How well maps segment the true regions, under the protocol of Chefer et al. (CVPR 2021, segmentation tests).

    Foreground is where the map exceeds its own mean (strictly; the mean is over all pixels), background is the rest; of
    both classes the intersection and the union with the true pixels are counted. The average precision
    Σ_n (R_n − R_{n−1})·P_n runs over the distinct scores, the highest first. ``average_precision`` is that of the
    authors' code: each pixel is ranked twice, with its map value as a foreground pixel and with 1 − value as a
    background pixel. ``foreground_average_precision`` ranks it once, by its map value.

    The numbers of a constant map, a map with NaN, or an image without a valid pixel in its region mean nothing;
    :class:`litcam.metrics.Segmentation` counts those apart.

    Args:
        heatmaps: [B, H, W] in [0, 1].
        regions: bool [B, H, W], the true foreground.
        valid: bool [B, H, W], False where pixels are void and left out; None if there are none.

    Returns:
        By name: ``intersection`` and ``union``, int64 [B, 2] in pixels (background, foreground); ``average_precision``
        and ``foreground_average_precision``, float64 [B].

    Raises:
        InputError: if shapes, dtypes or ranges are not these.
    """
    check_maps(heatmaps, "heatmaps")
    check_regions(regions, heatmaps)
    valid = check_valid(valid, heatmaps)
    check_scaled(heatmaps)
    values = heatmaps.double()
    foreground = values > values.mean((-2, -1), keepdim=True)
    predicted, true = torch.stack([~foreground, foreground], 1), torch.stack([~regions, regions], 1)  # [B, 2, H, W]
    labelled = valid[:, None]
    both_classes, foreground_alone = values.new_zeros(2, len(values))
    for index, (value, region, kept) in enumerate(zip(values, regions, valid, strict=True)):
        scores, labels = value[kept], region[kept]
        both_classes[index] = average_precision(torch.cat([1 - scores, scores]), torch.cat([~labels, labels]))
        foreground_alone[index] = average_precision(scores, labels)
    return {
        "intersection": (predicted & true & labelled).sum((-2, -1)),
        "union": ((predicted | true) & labelled).sum((-2, -1)),
        "average_precision": both_classes,
        "foreground_average_precision": foreground_alone,
    }


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Σ_n (R_n − R_{n−1})·P_n over the distinct scores, the highest first; NaN without any true label.

    Args:
        scores: [n].
        labels: bool [n].
    """
    ranked, order = scores.sort(descending=True)
    hits = labels[order].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1, device=hits.device)
    last = torch.searchsorted(-ranked, -ranked, right=True) - 1  # equal scores enter together
    return (hits * precision[last]).sum() / hits.sum()
