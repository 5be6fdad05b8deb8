"""Localization: does the map lie on the object?"""

from typing import Any, Literal

import torch
from torch import Tensor

from litcam.errors import check_choice, check_threshold
from litcam.heatmaps import is_degenerate
from litcam.metrics.counting import RegionMetric
from litcam.metrics.functional import LOCALIZATION_SCORES, localization


class Localization(RegionMetric):
    """Mean localization scores over images; the protocol of the AGCAM paper (Leem & Seo, AAAI 2024, tables 1 to 3).

    See :func:`litcam.metrics.functional.localization` for the scores. ``compute()`` gives their means and the counts
    ``num_images`` (averaged), ``num_degenerate`` (constant maps, and maps with NaN) and ``num_without_region``; what is
    counted in the latter two is in no mean. Without any image the means are NaN.

    Exact over batches and processes: the state is sums in double precision.

    Args:
        threshold: of the map, in [0, 1), or ``"otsu"`` for each map's own
            (:func:`litcam.metrics.functional.otsu_thresholds`), as in surveys of ViT explanations.
        prediction: ``"boxes"`` for the filled boxes of the map's components (the paper), ``"mask"`` for its pixels.
        paper: reproduce the rounding of the authors' code instead of exact ratios.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        InputError: for a threshold outside [0, 1) or of another name, or an unknown prediction.
    """

    total: Tensor

    def __init__(
        self,
        threshold: float | Literal["otsu"] = 0.5,
        prediction: Literal["boxes", "mask"] = "boxes",
        paper: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if isinstance(threshold, str):
            check_choice("threshold", threshold, ("otsu",))
        else:
            check_threshold(threshold)
        check_choice("prediction", prediction, ("boxes", "mask"))
        self.threshold = threshold
        self.prediction = prediction
        self.paper = paper
        self.add_state("total", torch.zeros(len(LOCALIZATION_SCORES), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, heatmaps: Tensor, regions: Tensor) -> None:
        """Add images.

        Args:
            heatmaps: [B, H, W] in [0, 1].
            regions: bool [B, H, W], the true regions.
        """
        if len(heatmaps) == 0:
            return
        scores = localization(heatmaps, regions, self.threshold, self.prediction, self.paper)
        degenerate = is_degenerate(heatmaps)
        kept = self.take(degenerate, without_region=~regions.flatten(1).any(1))
        self.total += torch.stack([scores[name][kept].sum() for name in LOCALIZATION_SCORES])

    def compute(self) -> dict[str, Tensor]:
        """Means by name, and the counts."""
        means = self.total / self.num_images
        return {
            **dict(zip(LOCALIZATION_SCORES, means.unbind(), strict=True)),
            **self.counts,
        }
