"""Pixel precision and recall of maps at a thousand thresholds. Knows no explainer and no dataset."""

import torch
from torch import Tensor

from litcam.metrics.functional.checks import check_maps, check_regions, check_scaled, check_valid
from litcam.metrics.functional.thresholds import NUM_THRESHOLDS, reached_thresholds


def pixel_histograms(heatmaps: Tensor, regions: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Histograms of the map's values in the true region and outside of it.

    Bin k counts the values in [k/1000, (k+1)/1000), bin 1000 those that are 1; see :func:`pixel_average_precision`. The
    row of a map with NaN means nothing.

    Args:
        heatmaps: [B, H, W] in [0, 1].
        regions: bool [B, H, W], the true region.
        valid: bool [B, H, W], False where pixels are void and left out; None if there are none.

    Returns:
        Of the foreground and of the background: int64 [B, 1001] each, in pixels.

    Raises:
        InputError: if shapes, dtypes or ranges are not these.
    """
    check_maps(heatmaps, "heatmaps")
    check_regions(regions, heatmaps)
    valid = check_valid(valid, heatmaps)
    check_scaled(heatmaps)
    batch, bins = len(heatmaps), NUM_THRESHOLDS + 1
    first = torch.arange(batch, device=heatmaps.device)[:, None, None] * bins
    cells = first + reached_thresholds(heatmaps)  # [B, H, W]
    foreground, background = (
        torch.bincount(cells[pixels], minlength=batch * bins).view(batch, bins)
        for pixels in (valid & regions, valid & ~regions)
    )
    return foreground, background


def pixel_average_precision(foreground: Tensor, background: Tensor) -> Tensor:
    """The area under the precision-recall curve of pixels, PxAP (Choe et al., CVPR 2020, "Evaluation metrics").

    Σ_k PxPrec(τ_k)·(PxRec(τ_k) − PxRec(τ_{k+1})) over the thresholds τ_k = k/1000, k = 1000 … 0, of which the first has
    the recall before it 0: at τ a pixel is predicted where the map is ≥ τ. A threshold that no pixel reaches adds
    nothing.

    Args:
        foreground: [..., 1001], histogram of the values in the true region, rising.
        background: [..., 1001], that of the values outside of it.

    Returns:
        Float64 [...]; NaN without a foreground pixel.
    """
    foreground, background = foreground.flip(-1).double(), background.flip(-1).double()
    hits, false_alarms = foreground.cumsum(-1), background.cumsum(-1)
    precision = hits / (hits + false_alarms).clamp(min=1)
    return (precision * foreground).sum(-1) / foreground.sum(-1)
