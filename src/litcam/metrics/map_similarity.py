"""MapSimilarity: how alike are two maps of the same images?"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from litcam.errors import InputError
from litcam.heatmaps import is_degenerate, scale
from litcam.metrics.functional.bootstrap import content_keys
from litcam.metrics.functional.correlation import spearman
from litcam.metrics.image_metric import ImageMetric, Measured

SSIM_WINDOW = 11  # pixels; no map may be smaller


class MapSimilarity(ImageMetric):
    """Mean similarity of two maps of each image (as in Adebayo et al., NeurIPS 2018, section 3).

    ``compute()`` gives ``spearman``, the rank correlation of the two maps, in [-1, 1]; ``ssim``, their structural
    similarity, each scaled to [0, 1] before; the intervals; and the counts ``num_images`` (averaged) and
    ``num_degenerate`` (left out, since one of the two maps is constant or holds NaN). Without any image they are NaN.

    SSIM is that of torchmetrics: a Gaussian window of 11 by 11 pixels with σ = 1.5 at every pixel, mirrored borders.

    Args:
        resamples: of the bootstrap behind the intervals; 0 for none.
        kwargs: of :class:`torchmetrics.Metric`.
    """

    column_names = ("spearman", "ssim")

    def __init__(self, resamples: int = 1000, **kwargs: Any) -> None:
        super().__init__(len(self.column_names), resamples, **kwargs)

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        return "similarity: rank correlation and SSIM of two maps of each image, means over images"

    def measure(self, first: Tensor, second: Tensor) -> Measured:
        """Compare maps.

        Args:
            first: float [B, H, W], at least 11 by 11 pixels.
            second: the same, of the same images in the same order.

        Raises:
            InputError: if shapes are not these.
        """
        if first.shape != second.shape or first.ndim != 3 or min(first.shape[1:]) < SSIM_WINDOW:
            raise InputError(
                f"Maps are {list(first.shape)} and {list(second.shape)}; both have to be [B, H, W] of at least "
                f"{SSIM_WINDOW} by {SSIM_WINDOW} pixels."
            )
        kept = ~is_degenerate(first) & ~is_degenerate(second)
        rows = self.nothing(first.device).rows
        if kept.any():
            one, other = first[kept].double(), second[kept].double()
            ssim = structural_similarity_index_measure(
                scale(one)[:, None], scale(other)[:, None], data_range=1.0, reduction="none"
            )
            rows = torch.stack([spearman(one, other), torch.as_tensor(ssim).double().view(-1)], 1)
        return Measured(rows, kept, content_keys(first, second), {"num_degenerate": (~kept).sum()})
