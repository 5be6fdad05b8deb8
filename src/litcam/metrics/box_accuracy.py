"""MaxBoxAcc: do the map's boxes meet the true ones, at the threshold that suits the method best?"""

from typing import Any

import torch
from torch import Tensor

from litcam.heatmaps import is_degenerate
from litcam.metrics.counting import RegionMetric
from litcam.metrics.functional import IOU_LEVELS, NUM_THRESHOLDS, box_overlaps


class MaxBoxAcc(RegionMetric):
    """Box accuracy at the best threshold, MaxBoxAcc and MaxBoxAccV2 (Choe et al., CVPR 2020, and its journal version).

    See :func:`litcam.metrics.functional.box_overlaps` for the boxes, and for how the authors' code differs a little.
    ``compute()`` gives

    - ``max_box_acc``: the share of images in which the box of the largest component has an IoU of at least 0.5 with a
      true box, at the one threshold of the map, 0, 0.001, …, 0.999, at which it is highest;
    - ``threshold``: that threshold; of several the lowest;
    - ``max_box_acc_v2``: the same with the best of all components' boxes; the mean of its maxima at IoU 0.3, 0.5, 0.7;
    - the counts ``num_images`` (taken in), ``num_degenerate`` (constant maps, and maps with NaN) and
      ``num_without_region`` (images without true box); what is counted in the latter two is in no score.

    Without any image the scores are NaN. Exact over batches and processes: the state is whole numbers.

    Args:
        kwargs: of :class:`torchmetrics.Metric`.
    """

    hits: Tensor
    hits_v2: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("hits", torch.zeros(NUM_THRESHOLDS, dtype=torch.int64), dist_reduce_fx="sum")
        hits_v2 = torch.zeros(len(IOU_LEVELS), NUM_THRESHOLDS, dtype=torch.int64)
        self.add_state("hits_v2", hits_v2, dist_reduce_fx="sum")

    def update(self, heatmaps: Tensor, boxes: Tensor) -> None:
        """Add images.

        Args:
            heatmaps: [B, H, W] in [0, 1].
            boxes: [K, 5], the image's index in the batch, then x0, y0, x1, y1 in pixels, ends exclusive.

        Raises:
            InputError: if shapes, dtypes or ranges are not these.
        """
        if len(heatmaps) == 0:
            return
        largest, best = box_overlaps(heatmaps, boxes)  # [B, 1000] each
        degenerate = is_degenerate(heatmaps)
        indices = torch.arange(len(heatmaps), device=heatmaps.device)
        without_region = ~torch.isin(indices, boxes[:, 0].long().to(heatmaps.device))
        kept = self.take(degenerate, without_region)
        self.hits += (largest[kept] >= 0.5).sum(0)
        self.hits_v2 += torch.stack([(best[kept] >= level).sum(0) for level in IOU_LEVELS])

    def compute(self) -> dict[str, Tensor]:
        """Scores and counts by name."""
        accuracy, place = (self.hits.double() / self.num_images).max(0)
        threshold = place.double() / NUM_THRESHOLDS
        return {
            "max_box_acc": accuracy,
            "max_box_acc_v2": (self.hits_v2.double() / self.num_images).amax(1).mean(),
            "threshold": torch.where(self.num_images > 0, threshold, torch.nan),
            **self.counts,
        }
