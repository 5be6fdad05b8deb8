"""Perturbation: is the map true of the model?"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from litcam.errors import check_at_least
from litcam.heatmaps import is_degenerate
from litcam.metrics.functional import STEPS, perturbation_curves


class Perturbation(Metric):
    """Area under the perturbation curves; the protocol of the AGCAM paper (Leem & Seo, AAAI 2024, table 4).

    See :func:`litcam.metrics.functional.perturbation_curves` for the curves. ``compute()`` gives ``lerf`` and ``morf``,
    the means of the 11 points of the mean curves, ``abpc`` = lerf − morf, the mean curves ``lerf_curve`` and
    ``morf_curve`` [11], and the counts ``num_images`` (averaged) and ``num_degenerate`` (constant maps, and maps with
    NaN: they are in no mean). Higher lerf and abpc and lower morf are better. Without any image the means are NaN.

    Exact over batches and processes: the state is sums in double precision.

    Args:
        batch_size: perturbed images per forward; bounds the memory.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        InputError: for a batch size below 1.
    """

    is_differentiable = False
    full_state_update = False

    lerf_total: Tensor
    morf_total: Tensor
    num_images: Tensor
    num_degenerate: Tensor

    def __init__(self, batch_size: int = 128, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_at_least("batch_size", batch_size)
        self.batch_size = batch_size
        for total in ("lerf_total", "morf_total"):
            self.add_state(total, torch.zeros(STEPS + 1, dtype=torch.float64), dist_reduce_fx="sum")
        for count in ("num_images", "num_degenerate"):
            self.add_state(count, torch.tensor(0), dist_reduce_fx="sum")

    def update(
        self,
        net: nn.Module | Callable[[Tensor], Tensor],
        images: Tensor,
        heatmaps: Tensor,
        targets: Tensor,
        logits: Tensor | None = None,
    ) -> None:
        """Add images.

        Args:
            net: gives logits of normalised images.
            images: normalised float [B, 3, H, W].
            heatmaps: [B, H, W].
            targets: class indices [B].
            logits: [B, C] of the images, where they are known already: saves a forward.
        """
        degenerate = is_degenerate(heatmaps)
        kept = ~degenerate
        self.num_degenerate += degenerate.sum()
        if not kept.any():
            return
        known = None if logits is None else logits[kept]
        lerf, morf = perturbation_curves(net, images[kept], heatmaps[kept], targets[kept], known, self.batch_size)
        self.lerf_total += lerf.sum(0).to(self.lerf_total.device)
        self.morf_total += morf.sum(0).to(self.morf_total.device)
        self.num_images += kept.sum()

    def compute(self) -> dict[str, Tensor]:
        """Areas, curves and counts by name."""
        lerf_curve, morf_curve = self.lerf_total / self.num_images, self.morf_total / self.num_images
        lerf, morf = lerf_curve.mean(), morf_curve.mean()
        return {
            "lerf": lerf,
            "morf": morf,
            "abpc": lerf - morf,
            "lerf_curve": lerf_curve,
            "morf_curve": morf_curve,
            "num_images": self.num_images,
            "num_degenerate": self.num_degenerate,
        }
