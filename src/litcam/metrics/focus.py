"""Focus: does more of the map lie on the object than chance would put there?"""

from typing import Any

import torch
from torch import Tensor

from litcam.heatmaps import is_degenerate
from litcam.metrics.functional.bootstrap import content_keys
from litcam.metrics.functional.checks import has_both
from litcam.metrics.functional.focus import focus
from litcam.metrics.image_metric import Measured, RegionMetric, leave_out


class Focus(RegionMetric):
    """Energy lift, a_tsi and m_tsi over images: statistics that tell whether a model looks elsewhere.

    See :func:`litcam.metrics.functional.focus.focus` for them. ``compute()`` gives the mean ``energy_lift`` (1 is
    chance, higher is better), the shares of images whose indices exceed 1, ``a_tsi_above_one`` and ``m_tsi_above_one``
    (lower is better), the intervals, and the counts ``num_images`` (averaged), ``num_degenerate`` (constant maps, and
    maps with NaN) and ``num_without_region`` (the region is empty or the whole image); what is counted in the latter
    two is in no mean. Without any image the means are NaN.

    Args:
        resamples: of the bootstrap behind the intervals; 0 for none.
        kwargs: of :class:`torchmetrics.Metric`.
    """

    column_names = ("energy_lift", "a_tsi_above_one", "m_tsi_above_one")

    def __init__(self, resamples: int = 1000, **kwargs: Any) -> None:
        super().__init__(len(self.column_names), resamples, **kwargs)

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        return "focus: energy inside as a multiple of chance; share of images with more map outside than inside"

    def measure(self, heatmaps: Tensor, regions: Tensor) -> Measured:
        """Score images.

        Args:
            heatmaps: [B, H, W] in [0, 1].
            regions: bool [B, H, W], the true regions.

        Raises:
            InputError: if shapes, dtypes or ranges are not these.
        """
        scores = focus(heatmaps, regions)
        above = [(scores[name] > 1).double() for name in ("a_tsi", "m_tsi")]
        rows = torch.stack([scores["energy_lift"], *above], 1)
        keys, degenerate = content_keys(heatmaps, regions), is_degenerate(heatmaps)
        return leave_out(rows, keys, degenerate, without_region=~has_both(regions))
