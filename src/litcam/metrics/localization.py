"""Localization: does the map lie on the object?"""

from typing import Any, Literal

import torch
from torch import Tensor

from litcam.errors import check_choice, check_threshold
from litcam.heatmaps import is_degenerate
from litcam.metrics.functional import LOCALIZATION_SCORES, localization
from litcam.metrics.functional.bootstrap import content_keys
from litcam.metrics.image_metric import Measured, RegionMetric, leave_out


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
        resamples: of the bootstrap behind the intervals; 0 for none.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        InputError: for a threshold outside [0, 1) or of another name, or an unknown prediction.
    """

    column_names = LOCALIZATION_SCORES

    def __init__(
        self,
        threshold: float | Literal["otsu"] = 0.5,
        prediction: Literal["boxes", "mask"] = "boxes",
        paper: bool = False,
        resamples: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(len(LOCALIZATION_SCORES), resamples, **kwargs)
        if isinstance(threshold, str):
            check_choice("threshold", threshold, ("otsu",))
        else:
            check_threshold(threshold)
        check_choice("prediction", prediction, ("boxes", "mask"))
        self.threshold = threshold
        self.prediction = prediction
        self.paper = paper

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        region = "boxes of the map" if self.prediction == "boxes" else "the map"
        threshold = "its Otsu threshold" if self.threshold == "otsu" else f"{self.threshold:g}"
        ratios = "as the AGCAM authors' code rounds" if self.paper else "exact ratios"
        return f"agcam: {region} > {threshold} against the true region, {ratios}"

    def measure(self, heatmaps: Tensor, regions: Tensor) -> Measured:
        """Score images.

        Args:
            heatmaps: [B, H, W] in [0, 1].
            regions: bool [B, H, W], the true regions.

        Raises:
            InputError: if shapes, dtypes or ranges are not these.
        """
        scores = localization(heatmaps, regions, self.threshold, self.prediction, self.paper)
        rows = torch.stack([scores[name] for name in LOCALIZATION_SCORES], 1)
        empty = ~regions.flatten(1).any(1)
        return leave_out(rows, content_keys(heatmaps, regions), is_degenerate(heatmaps), without_region=empty)
