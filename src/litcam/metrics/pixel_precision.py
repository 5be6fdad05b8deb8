"""PxAP: precision and recall of the map's pixels over all thresholds."""

from typing import Any

import torch
from torch import Tensor

from litcam.heatmaps import is_degenerate
from litcam.metrics.counting import RegionMetric
from litcam.metrics.functional import NUM_THRESHOLDS, pixel_average_precision, pixel_histograms


class PxAP(RegionMetric):
    """Pixel average precision over a dataset (Choe et al., CVPR 2020, "Evaluation metrics").

    See :func:`litcam.metrics.functional.pixel_average_precision` for the formula. ``compute()`` gives ``pxap``, the
    area under the precision-recall curve of the valid pixels of all images together, at the thresholds 0, 0.001, …, 1
    of the map, so images with large objects weigh more; and the counts ``num_images`` (taken in), ``num_degenerate``
    (constant maps, and maps with NaN) and ``num_without_region`` (no valid pixel in the region); what is counted in the
    latter two is in no score. Without any image the score is NaN.

    Exact over batches and processes: the state is whole numbers.

    Args:
        kwargs: of :class:`torchmetrics.Metric`.
    """

    foreground: Tensor
    background: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for histogram in ("foreground", "background"):
            self.add_state(histogram, torch.zeros(NUM_THRESHOLDS + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, heatmaps: Tensor, regions: Tensor, valid: Tensor | None = None) -> None:
        """Add images.

        Args:
            heatmaps: [B, H, W] in [0, 1].
            regions: bool [B, H, W], the true region.
            valid: bool [B, H, W], False where pixels are void and left out; None if there are none.

        Raises:
            InputError: if shapes, dtypes or ranges are not these.
        """
        if len(heatmaps) == 0:
            return
        foreground, background = pixel_histograms(heatmaps, regions, valid)  # [B, 1001] each
        degenerate = is_degenerate(heatmaps)
        kept = self.take(degenerate, without_region=foreground.sum(1) == 0)
        self.foreground += foreground[kept].sum(0)
        self.background += background[kept].sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Score and counts by name."""
        return {
            "pxap": pixel_average_precision(self.foreground, self.background),
            **self.counts,
        }
