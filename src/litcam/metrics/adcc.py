"""ADCC: does the map alone carry the class, and says the same again?"""

from typing import Any

import torch
from torch import Tensor

from litcam.errors import check_at_least, check_choice
from litcam.heatmaps import is_degenerate
from litcam.metrics.counting import ImageMetric
from litcam.metrics.functional.adcc import ADCC_SCORES, Explain, adcc, adcc_scores
from litcam.metrics.functional.forwards import PRECISIONS, Net, Precision, check_batch


class ADCC(ImageMetric):
    """Average drop, coherency and complexity, and their harmonic mean (Poppi et al., CVPRW 2021).

    See :func:`litcam.metrics.functional.adcc_scores`. ``compute()`` gives the means over images of ``drop``,
    ``increase``, ``coherency``, ``complexity`` and ``adcc`` (as the authors' repository averages it), and
    ``adcc_of_means``, the harmonic mean of the means of coherency, 1 − complexity and 1 − drop (as in the tables of
    ViT-ReciproCAM). All are shares in [0, 1], where the papers print per cent. Lower drop and complexity and higher
    values of the others are better.

    The counts are ``num_images`` (averaged), ``num_degenerate`` (constant maps, and maps with NaN: they are in no
    mean) and ``num_masked_degenerate`` (images averaged whose map of the masked image is such: their coherency and
    adcc are 0, as the authors have it). Without any image the means are NaN.

    An image costs two forwards (one with its logits) and one explanation. Exact over batches and processes: the state
    is sums in double precision.

    Args:
        batch_size: images per forward; bounds the memory.
        precision: ``"fp32"``, or ``"bf16"`` for forwards under autocast.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        InputError: for an option out of its range.
    """

    counted = (*ImageMetric.counted, "num_masked_degenerate")

    total: Tensor
    num_masked_degenerate: Tensor

    def __init__(self, batch_size: int = 128, precision: Precision = "fp32", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_at_least("batch_size", batch_size)
        check_choice("precision", precision, PRECISIONS)
        self.batch_size = batch_size
        self.precision: Precision = precision
        self.add_state("total", torch.zeros(len(ADCC_SCORES), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self,
        explain: Explain,
        net: Net,
        images: Tensor,
        heatmaps: Tensor,
        targets: Tensor,
        logits: Tensor | None = None,
    ) -> None:
        """Add images.

        Args:
            explain: gives the maps [B, H, W] of images [B, 3, H, W] and classes [B], scaled to [0, 1] and at the size
                of the images: the method that made ``heatmaps``.
            net: gives logits of normalised images.
            images: normalised float [B, 3, H, W].
            heatmaps: [B, H, W] in [0, 1].
            targets: class indices [B].
            logits: [B, C] of the images, where they are known already: saves a forward.

        Raises:
            InputError: if shapes, dtypes, ranges or classes do not fit.
        """
        check_batch(images, heatmaps, targets, logits)
        degenerate = is_degenerate(heatmaps)
        kept = ~degenerate
        self.num_degenerate += degenerate.sum()
        if not kept.any():
            return
        known = None if logits is None else logits[kept]
        scores = adcc_scores(
            explain, net, images[kept], heatmaps[kept], targets[kept], known, self.batch_size, self.precision
        )
        self.total += torch.stack([scores[name].sum() for name in ADCC_SCORES]).to(self.total.device)
        self.num_images += kept.sum()
        self.num_masked_degenerate += int(scores["masked_degenerate"].sum())

    def compute(self) -> dict[str, Tensor]:
        """Means and counts by name."""
        means = dict(zip(ADCC_SCORES, self.total / self.num_images, strict=True))
        return {
            **means,
            "adcc_of_means": adcc(means["drop"], means["coherency"], means["complexity"]),
            **self.counts,
        }
