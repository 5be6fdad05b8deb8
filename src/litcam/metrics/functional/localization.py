"""Localization of maps against true regions, one number per image. Knows no explainer and no dataset."""

from typing import Literal

import torch
from torch import Tensor

from litcam.heatmaps import fill_components
from litcam.metrics.functional.checks import check_maps, check_regions, count_pixels
from litcam.metrics.functional.thresholds import otsu_thresholds

LOCALIZATION_SCORES = ("pixel_accuracy", "iou", "dice", "precision", "recall", "pointing_game", "energy_inside")
PAPER_EPSILON = 1e-5  # the AGCAM authors' guard of every division


def localization(
    heatmaps: Tensor,
    regions: Tensor,
    threshold: float | Literal["otsu"] = 0.5,
    prediction: str = "boxes",
    paper: bool = False,
) -> dict[str, Tensor]:
    """How well maps lie on the true regions, under the localization protocol of the AGCAM paper.

    The predicted region is where the map exceeds the threshold (strictly): with ``prediction="boxes"`` the union of the
    filled bounding boxes of its 8-connected components, with ``"mask"`` those pixels themselves. Over all pixels:
    accuracy, IoU, dice, precision, recall, where 0/0 is 1. Of the map itself: ``pointing_game``, of the pixels that
    attain the maximum the share that lies in the region; ``energy_inside``, Σ map in the region / Σ map (NaN for an
    all-zero map).

    Args:
        heatmaps: [B, H, W] in [0, 1].
        regions: bool [B, H, W], the true regions.
        threshold: in [0, 1), or ``"otsu"`` for each map's own (:func:`otsu_thresholds`).
        prediction: ``"boxes"`` or ``"mask"``.
        paper: compute as the authors' code does: ratios are (x + 1e-5)/(y + 1e-5), and predicted boxes reach one pixel
            further to the right and to the bottom.

    Returns:
        Seven float64 tensors [B] by name.

    Raises:
        InputError: if shapes, dtypes or ranges are not these.
    """
    check_maps(heatmaps, "heatmaps")
    check_regions(regions, heatmaps)
    predicted = heatmaps > (otsu_thresholds(heatmaps)[:, None, None] if threshold == "otsu" else threshold)
    if prediction == "boxes":
        predicted = fill_components(predicted, margin=int(paper))
    epsilon = PAPER_EPSILON if paper else 0.0
    inside, outside = (predicted & regions), (~predicted & ~regions)
    hits, rejections = count_pixels(inside), count_pixels(outside)
    predicted_size, true_size, image_size = count_pixels(predicted), count_pixels(regions), heatmaps.shape[-2:].numel()
    values, region_values = heatmaps.double(), heatmaps.double() * regions
    highest = heatmaps == heatmaps.amax((-2, -1), keepdim=True)
    return {
        "pixel_accuracy": _ratio(hits + rejections, torch.full_like(hits, image_size), epsilon),
        "iou": _ratio(hits, predicted_size + true_size - hits, epsilon),
        "dice": _ratio(2 * hits, predicted_size + true_size, epsilon),
        "precision": _ratio(hits, predicted_size, epsilon),
        "recall": _ratio(hits, true_size, epsilon),
        "pointing_game": count_pixels(highest & regions) / count_pixels(highest),
        "energy_inside": region_values.sum((-2, -1)) / values.sum((-2, -1)),
    }


def _ratio(numerator: Tensor, denominator: Tensor, epsilon: float) -> Tensor:
    """(x + ε)/(y + ε); without ε its limit, in which 0/0 is 1."""
    ratio = (numerator + epsilon) / (denominator + epsilon)
    return torch.where((numerator == 0) & (denominator == 0), torch.ones_like(ratio), ratio)
