"""ImageMetric and RegionMetric: what every metric over images counts, and which images it leaves out."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric


class ImageMetric(Metric):
    """A summary over images that says how many it is of: ``num_images`` taken in, ``num_degenerate`` left out.

    Args:
        kwargs: of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False
    counted: ClassVar[tuple[str, ...]] = ("num_images", "num_degenerate")

    num_images: Tensor
    num_degenerate: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for count in self.counted:
            self.add_state(count, torch.tensor(0), dist_reduce_fx="sum")

    @property
    def counts(self) -> dict[str, Tensor]:
        """The counts by name."""
        return {count: getattr(self, count) for count in self.counted}


class RegionMetric(ImageMetric):
    """A metric of maps against true regions, which also leaves out images without one: ``num_without_region``."""

    higher_is_better = True
    counted = (*ImageMetric.counted, "num_without_region")

    num_without_region: Tensor

    def take(self, degenerate: Tensor, without_region: Tensor) -> Tensor:
        """Count images, each once, and say which to take in.

        Args:
            degenerate: bool [B], whose map says nothing.
            without_region: bool [B], who have nothing to compare it with.

        Returns:
            Bool [B].
        """
        without_region = without_region & ~degenerate
        kept = ~degenerate & ~without_region
        self.num_images += kept.sum()
        self.num_degenerate += degenerate.sum()
        self.num_without_region += without_region.sum()
        return kept
