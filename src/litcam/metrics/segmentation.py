"""Segmentation: does the map cover the object, pixel by pixel?"""

from typing import Any

import torch
from torch import Tensor

from litcam.heatmaps import is_degenerate
from litcam.metrics.functional import segmentation
from litcam.metrics.functional.bootstrap import content_keys
from litcam.metrics.image_metric import Measured, RegionMetric, leave_out


class Segmentation(RegionMetric):
    """Segmentation scores over a dataset; the protocol of Chefer et al. (CVPR 2021, segmentation tests).

    Foreground is where a map exceeds its own mean; see :func:`litcam.metrics.functional.segmentation`. ``compute()``
    gives

    - ``pixel_accuracy``: the share of the valid pixels of all images that are classified rightly;
    - ``miou``: the mean over foreground and background of intersection / union, each summed over all images first;
    - ``map``: the mean over images of the average precision as the authors' code has it, over both classes;
    - ``foreground_map``: the same over the foreground alone;
    - the counts ``num_images`` (taken in), ``num_degenerate`` (constant maps, and maps with NaN) and
      ``num_without_region`` (no valid pixel in the region); what is counted in the latter two is in no score.

    Without any image the scores are NaN; a class without any pixel, true or predicted, makes ``miou`` NaN.

    Exact over batches and processes: the state is whole numbers, and sums in double precision.

    Args:
        resamples: of the bootstrap behind the intervals; 0 for none.
        kwargs: of :class:`torchmetrics.Metric`.
    """

    def __init__(self, resamples: int = 1000, **kwargs: Any) -> None:
        super().__init__(7, resamples, **kwargs)

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        return "chefer: map > its own mean against the mask; intersections, unions and hits summed over all images"

    def measure(self, heatmaps: Tensor, regions: Tensor, valid: Tensor | None = None) -> Measured:
        """Count pixels, and rank them.

        Args:
            heatmaps: [B, H, W] in [0, 1].
            regions: bool [B, H, W], the true foreground.
            valid: bool [B, H, W], False where pixels are void and left out; None if there are none.

        Raises:
            InputError: if shapes, dtypes or ranges are not these.
        """
        scores = segmentation(heatmaps, regions, valid)
        valid = torch.ones_like(regions) if valid is None else valid
        parts = (
            *(scores["intersection"], scores["union"], valid.sum((1, 2))[:, None]),
            *(scores["average_precision"][:, None], scores["foreground_average_precision"][:, None]),
        )
        rows = torch.cat([part.double() for part in parts], 1)
        empty = ~(regions & valid).flatten(1).any(1)
        return leave_out(rows, content_keys(heatmaps, regions), is_degenerate(heatmaps), without_region=empty)

    def scores(self, sums: Tensor, num_images: Tensor) -> dict[str, Tensor]:
        """Scores by name."""
        intersection, union = sums[..., :2], sums[..., 2:4]
        num_pixels, precision, foreground_precision = sums[..., 4:].unbind(-1)
        return {
            "pixel_accuracy": intersection.sum(-1) / num_pixels,
            "miou": (intersection / union).mean(-1),
            "map": precision / num_images,
            "foreground_map": foreground_precision / num_images,
        }
