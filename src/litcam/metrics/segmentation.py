"""Segmentation: does the map cover the object, pixel by pixel?"""

from typing import Any

import torch
from torch import Tensor

from litcam.heatmaps import is_degenerate
from litcam.metrics.counting import RegionMetric
from litcam.metrics.functional import segmentation


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
        kwargs: of :class:`torchmetrics.Metric`.
    """

    intersection: Tensor
    union: Tensor
    num_pixels: Tensor
    precision_total: Tensor
    foreground_precision_total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for pixels in ("intersection", "union"):  # of background and foreground
            self.add_state(pixels, torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")
        for total in ("precision_total", "foreground_precision_total"):
            self.add_state(total, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_pixels", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, heatmaps: Tensor, regions: Tensor, valid: Tensor | None = None) -> None:
        """Add images.

        Args:
            heatmaps: [B, H, W] in [0, 1].
            regions: bool [B, H, W], the true foreground.
            valid: bool [B, H, W], False where pixels are void and left out; None if there are none.

        Raises:
            InputError: if shapes, dtypes or ranges are not these.
        """
        if len(heatmaps) == 0:
            return
        scores = segmentation(heatmaps, regions, valid)
        valid = torch.ones_like(regions) if valid is None else valid
        degenerate = is_degenerate(heatmaps)
        kept = self.take(degenerate, without_region=~(regions & valid).flatten(1).any(1))
        self.intersection += scores["intersection"][kept].sum(0)
        self.union += scores["union"][kept].sum(0)
        self.num_pixels += valid[kept].sum()
        self.precision_total += scores["average_precision"][kept].sum()
        self.foreground_precision_total += scores["foreground_average_precision"][kept].sum()

    def compute(self) -> dict[str, Tensor]:
        """Scores and counts by name."""
        return {
            "pixel_accuracy": self.intersection.sum().double() / self.num_pixels,
            "miou": (self.intersection.double() / self.union).mean(),
            "map": self.precision_total / self.num_images,
            "foreground_map": self.foreground_precision_total / self.num_images,
            **self.counts,
        }
