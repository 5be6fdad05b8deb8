"""ADCC: does the map alone carry the class, and says the same again?"""

from typing import Any

import torch
from torch import Tensor

from litcam.errors import check_at_least, check_choice
from litcam.heatmaps import is_degenerate
from litcam.metrics.functional.adcc import ADCC_SCORES, Explain, adcc, adcc_scores
from litcam.metrics.functional.bootstrap import content_keys
from litcam.metrics.functional.forwards import PRECISIONS, Net, Precision, check_batch
from litcam.metrics.image_metric import ImageMetric, Measured


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
        multi_label: whether the classes do not exclude each other, so that p is the sigmoid's, not the softmax's.
        resamples: of the bootstrap behind the intervals; 0 for none.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        InputError: for an option out of its range.
    """

    counted = (*ImageMetric.counted, "num_masked_degenerate")

    num_masked_degenerate: Tensor

    column_names = ADCC_SCORES

    def __init__(
        self,
        batch_size: int = 128,
        precision: Precision = "fp32",
        multi_label: bool = False,
        resamples: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(len(ADCC_SCORES), resamples, **kwargs)
        check_at_least("batch_size", batch_size)
        check_choice("precision", precision, PRECISIONS)
        self.batch_size = batch_size
        self.precision: Precision = precision
        self.multi_label = multi_label

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        return "adcc: the normalised image times its map; adcc averaged over images, adcc_of_means over the dataset"

    def measure(
        self,
        explain: Explain,
        net: Net,
        images: Tensor,
        heatmaps: Tensor,
        targets: Tensor,
        logits: Tensor | None = None,
    ) -> Measured:
        """Score images.

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
        kept = ~is_degenerate(heatmaps)
        rows = self.nothing(images.device).rows
        counts = {"num_degenerate": (~kept).sum()}
        if kept.any():
            known = None if logits is None else logits[kept]
            scores = adcc_scores(
                explain,
                net,
                images[kept],
                heatmaps[kept],
                targets[kept],
                known,
                self.batch_size,
                self.precision,
                self.multi_label,
            )
            rows = torch.stack([scores[name] for name in ADCC_SCORES], 1)
            counts["num_masked_degenerate"] = scores["masked_degenerate"].sum().long()
        return Measured(rows, kept, content_keys(images, heatmaps, targets), counts)

    def scores(self, sums: Tensor, num_images: Tensor) -> dict[str, Tensor]:
        """Means by name."""
        means = super().scores(sums, num_images)
        return {**means, "adcc_of_means": adcc(means["drop"], means["coherency"], means["complexity"])}
