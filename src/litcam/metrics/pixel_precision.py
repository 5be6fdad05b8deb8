"""PxAP: precision and recall of the map's pixels over all thresholds."""

from typing import Any

import torch
from torch import Tensor

from litcam.heatmaps import is_degenerate
from litcam.metrics.functional import NUM_THRESHOLDS, pixel_average_precision, pixel_histograms
from litcam.metrics.functional.bootstrap import content_keys
from litcam.metrics.image_metric import Measured, RegionMetric, leave_out


class PxAP(RegionMetric):
    """Pixel average precision over a dataset (Choe et al., CVPR 2020, "Evaluation metrics").

    See :func:`litcam.metrics.functional.pixel_average_precision` for the formula. ``compute()`` gives ``pxap``, the
    area under the precision-recall curve of the valid pixels of all images together, at the thresholds 0, 0.001, …, 1
    of the map, so images with large objects weigh more; and the counts ``num_images`` (taken in), ``num_degenerate``
    (constant maps, and maps with NaN) and ``num_without_region`` (no valid pixel in the region); what is counted in the
    latter two is in no score. Without any image the score is NaN.

    Exact over batches and processes: the state is whole numbers.

    Args:
        resamples: of the bootstrap behind the intervals; 0 for none.
        kwargs: of :class:`torchmetrics.Metric`.
    """

    def __init__(self, resamples: int = 1000, **kwargs: Any) -> None:
        super().__init__(2 * (NUM_THRESHOLDS + 1), resamples, **kwargs)

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        return "pxap: precision and recall of the valid pixels of all images together, map ≥ τ at a thousand τ"

    def measure(self, heatmaps: Tensor, regions: Tensor, valid: Tensor | None = None) -> Measured:
        """Count pixels by the value of the map.

        Args:
            heatmaps: [B, H, W] in [0, 1].
            regions: bool [B, H, W], the true region.
            valid: bool [B, H, W], False where pixels are void and left out; None if there are none.

        Raises:
            InputError: if shapes, dtypes or ranges are not these.
        """
        foreground, background = pixel_histograms(heatmaps, regions, valid)  # [B, 1001] each
        rows = torch.cat([foreground, background], 1).double()
        return leave_out(
            rows, content_keys(heatmaps, regions), is_degenerate(heatmaps), without_region=foreground.sum(1) == 0
        )

    def scores(self, sums: Tensor, num_images: Tensor) -> dict[str, Tensor]:
        """The score by name."""
        return {"pxap": pixel_average_precision(*sums.chunk(2, dim=-1))}
