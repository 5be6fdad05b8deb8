"""MaxBoxAcc: do the map's boxes meet the true ones, at the threshold that suits the method best?"""

from typing import Any

import torch
from torch import Tensor

from litcam.heatmaps import is_degenerate
from litcam.metrics.functional import IOU_LEVELS, NUM_THRESHOLDS, box_overlaps
from litcam.metrics.functional.bootstrap import content_keys
from litcam.metrics.image_metric import Measured, RegionMetric, leave_out


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
        resamples: of the bootstrap behind the intervals; 0 for none.
        kwargs: of :class:`torchmetrics.Metric`.
    """

    def __init__(self, resamples: int = 1000, **kwargs: Any) -> None:
        super().__init__((1 + len(IOU_LEVELS)) * NUM_THRESHOLDS, resamples, **kwargs)

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        return (
            "max_box_acc: share of images whose map ≥ τ has its largest component's box at IoU ≥ 0.5 with a true one, "
            "at the best τ; v2: the best of all components' boxes, mean over IoU 0.3, 0.5 and 0.7"
        )

    def measure(self, heatmaps: Tensor, boxes: Tensor) -> Measured:
        """Compare boxes.

        Args:
            heatmaps: [B, H, W] in [0, 1].
            boxes: [K, 5], the image's index in the batch, then x0, y0, x1, y1 in pixels, ends exclusive.

        Raises:
            InputError: if shapes, dtypes or ranges are not these.
        """
        largest, best = box_overlaps(heatmaps, boxes)  # [B, 1000] each
        degenerate = is_degenerate(heatmaps)
        indices = torch.arange(len(heatmaps), device=heatmaps.device)
        without_region = ~torch.isin(indices, boxes[:, 0].long().to(heatmaps.device))
        hits = [largest >= 0.5, *(best >= level for level in IOU_LEVELS)]
        box_keys = torch.zeros(len(heatmaps), dtype=torch.int64, device=heatmaps.device)
        box_keys.index_add_(0, boxes[:, 0].long(), content_keys(boxes[:, 1:]))
        return leave_out(torch.cat(hits, 1).double(), content_keys(heatmaps) + box_keys, degenerate, without_region)

    def scores(self, sums: Tensor, num_images: Tensor) -> dict[str, Tensor]:
        """Scores by name."""
        largest, *levels = (sums / num_images[..., None]).unflatten(-1, (-1, NUM_THRESHOLDS)).unbind(-2)
        accuracy, threshold = largest.max(-1)
        return {
            "max_box_acc": accuracy,
            "max_box_acc_v2": torch.stack([level.amax(-1) for level in levels]).mean(0),
            "threshold": torch.where(num_images > 0, threshold.double() / NUM_THRESHOLDS, torch.nan),
        }
