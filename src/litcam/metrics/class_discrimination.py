"""Class discrimination: does the map of each class in an image lie on that class?"""

from typing import Any

import torch
from torch import Tensor

from litcam.heatmaps import is_degenerate
from litcam.metrics.functional import CLASS_SCORES, class_discrimination, own_regions
from litcam.metrics.functional.bootstrap import content_keys
from litcam.metrics.image_metric import Measured, RegionMetric, leave_out


class ClassDiscrimination(RegionMetric):
    """Mean class discrimination over images of several classes: figure 6 of the AGCAM paper in numbers.

    See :func:`litcam.metrics.functional.class_discrimination` for the scores; a class-blind method scores 1/K, whatever
    the areas of the K classes. ``compute()`` gives their means and the counts ``num_images`` (averaged),
    ``num_degenerate`` (images with a map that is constant, holds NaN, or is zero in the regions of all classes) and
    ``num_without_region`` (images with a class that has no pixel of its own); what is counted in the latter two is in
    no mean. Without any image the means are NaN.

    Exact over batches and processes: the state is sums in double precision.

    Args:
        resamples: of the bootstrap behind the intervals; 0 for none.
        kwargs: of :class:`torchmetrics.Metric`.
    """

    column_names = CLASS_SCORES

    def __init__(self, resamples: int = 1000, **kwargs: Any) -> None:
        super().__init__(len(CLASS_SCORES), resamples, **kwargs)

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        return (
            "share of each class's map, and of its maximum, on its own pixels among those of all classes of the image; "
            "a class-blind map has 1/K for K classes"
        )

    def measure(self, heatmaps: Tensor, regions: Tensor) -> Measured:
        """Score images.

        Args:
            heatmaps: [B, K, H, W] in [0, 1], the maps of K ≥ 2 classes of each image.
            regions: bool [B, K, H, W], the true region of each of these classes.

        Raises:
            InputError: if shapes or dtypes are not these.
        """
        scores = class_discrimination(heatmaps, regions)
        says_nothing = is_degenerate(heatmaps.flatten(0, 1)).view(heatmaps.shape[:2]).any(1)
        without_region = ~own_regions(regions).flatten(2).any(2).all(1) & ~says_nothing
        degenerate = says_nothing | (scores["class_energy"].isnan() & ~without_region)
        rows = torch.stack([scores[name] for name in CLASS_SCORES], 1)
        return leave_out(rows, content_keys(heatmaps, regions), degenerate, without_region)
