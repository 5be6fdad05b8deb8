"""Reliance: does the model need the object? It takes no map."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from litcam.errors import check_at_least, check_choice
from litcam.metrics.functional.bootstrap import content_keys
from litcam.metrics.functional.checks import has_both
from litcam.metrics.functional.forwards import PRECISIONS, Net, Precision
from litcam.metrics.functional.reliance import (
    FILLS,
    RELIANCE_COLUMNS,
    RelianceFill,
    check_images,
    next_of_another_class,
    relative_foreground_sensitivity,
    reliance,
)
from litcam.metrics.image_metric import ImageMetric, Measured

_FILLED = {
    "swap": "another image's background",
    "mean": "0 in normalised space",
    "blur": "what is kept, blurred into it",
}


class Reliance(ImageMetric):
    """What the model still knows of an image from the object alone, and from the background alone.

    ``accuracy``, ``accuracy_object`` and ``accuracy_background`` are the shares of images whose true class is predicted
    from the whole image, from its object alone and from its background alone; ``probability…`` are the means of the
    probability of that class. What is removed is replaced as ``fill`` says:
    see :func:`litcam.metrics.functional.reliance.object_and_background`.

    ``reliance_object`` = accuracy − accuracy_background is what it loses with the object, ``reliance_background`` =
    accuracy − accuracy_object with the background. A model that cheats loses little with the object, but much with the
    background; under ``"swap"``, which brings the cues of another class, it can fall below chance on the object alone.
    ``relative_foreground_sensitivity`` is the RFS of Moayeri et al. (CVPR 2022), also used by Hard ImageNet, from −1
    (only the background counts) to 1 (only the object does); NaN where the two accuracies are both 0 or both 1.

    A cue within the region goes with the object: such cheating shows here no more than in a map. A tint or a texture,
    which no map can point at, does show.

    Counts: ``num_degenerate`` (the region is the whole image), ``num_without_region`` and, under ``"swap"``,
    ``num_without_partner`` (no image of another class at hand); these images are in no mean. Without any image the
    means are NaN.

    Exact over batches and processes, except that under ``"swap"`` the partners are taken from the batch unless the
    caller gives them. 2 forwards per image, and a third without its logits.

    Args:
        fill: ``"swap"``, ``"mean"`` or ``"blur"``.
        batch_size: images per forward; bounds the memory.
        precision: ``"fp32"``, or ``"bf16"`` for forwards under autocast.
        resamples: of the bootstrap behind the intervals; 0 for none.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        InputError: for an option out of its range.
    """

    counted: ClassVar[tuple[str, ...]] = (*ImageMetric.counted, "num_without_region", "num_without_partner")

    num_without_region: Tensor
    num_without_partner: Tensor

    column_names = RELIANCE_COLUMNS

    def __init__(
        self,
        fill: RelianceFill = "swap",
        batch_size: int = 128,
        precision: Precision = "fp32",
        resamples: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(len(RELIANCE_COLUMNS), resamples, **kwargs)
        check_choice("fill", fill, FILLS)
        check_at_least("batch_size", batch_size)
        check_choice("precision", precision, PRECISIONS)
        self.fill: RelianceFill = fill
        self.batch_size = batch_size
        self.precision: Precision = precision

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        autocast = "; bfloat16 autocast" if self.precision == "bf16" else ""
        return f"{self.fill}: what is removed is replaced by {_FILLED[self.fill]}; the true class{autocast}"

    def measure(
        self,
        net: Net,
        images: Tensor,
        regions: Tensor,
        targets: Tensor,
        logits: Tensor | None = None,
        others: Tensor | None = None,
        other_regions: Tensor | None = None,
    ) -> Measured:
        """Show the net objects and backgrounds alone.

        Args:
            net: gives logits of normalised images.
            images: normalised float [B, 3, H, W].
            regions: bool [B, H, W], where the object is.
            targets: the true classes [B].
            logits: [B, C] of the images, where they are known already: saves a forward.
            others: for ``"swap"`` a partner for each image, of another class [B, 3, H, W]; None takes the next image of
                the batch that has another class, going round.
            other_regions: where the partners' objects are, bool [B, H, W]; an empty region stands for no partner.

        Raises:
            InputError: if shapes, dtypes or classes do not fit.
        """
        check_images(images, regions, targets, logits)
        kept = usable = has_both(regions)
        if self.fill == "swap":
            if others is None or other_regions is None:
                others, other_regions = _partners(images, regions, targets, usable)
            kept = usable & has_both(other_regions)
        rows = self.nothing(images.device).rows
        if kept.any():
            known, partners, partner_regions = (
                None if tensor is None else tensor[kept] for tensor in (logits, others, other_regions)
            )
            rows = reliance(
                net,
                images[kept],
                regions[kept],
                targets[kept],
                known,
                self.fill,
                partners,
                partner_regions,
                self.batch_size,
                self.precision,
            )
        empty = ~regions.flatten(1).any(1)
        counts = {
            "num_degenerate": (~usable & ~empty).sum(),
            "num_without_region": empty.sum(),
            "num_without_partner": (usable & ~kept).sum(),
        }
        return Measured(rows, kept, content_keys(images, regions, targets), counts)

    def scores(self, sums: Tensor, num_images: Tensor) -> dict[str, Tensor]:
        """Means, what is lost without object or background, and the relative foreground sensitivity, by name."""
        means = super().scores(sums, num_images)
        whole, of_object, of_background = (means[name] for name in RELIANCE_COLUMNS[:3])
        return {
            **means,
            "reliance_object": whole - of_background,
            "reliance_background": whole - of_object,
            "relative_foreground_sensitivity": relative_foreground_sensitivity(of_object, of_background),
        }


def _partners(images: Tensor, regions: Tensor, targets: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """For each image the next usable one of another class in the batch, and its region; empty where there is none."""
    others, other_regions = images.clone(), torch.zeros_like(regions)
    where = usable.nonzero()[:, 0]
    partner = next_of_another_class(targets[where])
    where, partner = where[partner >= 0], where[partner[partner >= 0]]
    others[where], other_regions[where] = images[partner], regions[partner]
    return others, other_regions
