"""Class discrimination of the maps of an image, one number per image. Knows no explainer and no dataset."""

import torch
from torch import Tensor

from litcam.errors import InputError
from litcam.metrics.functional.checks import check_regions, count_pixels

CLASS_SCORES = ("class_energy", "class_pointing")


def class_discrimination(heatmaps: Tensor, regions: Tensor) -> dict[str, Tensor]:
    """Whether the map of each class in an image lies on that class rather than on the others.

    Figure 6 of the AGCAM paper (Leem & Seo, AAAI 2024) in numbers. Only the pixels that belong to exactly one of the
    classes are compared (:func:`own_regions`), so the background plays no part. Of the map of class a:
    ``class_energy``, Σ map in the region of a / Σ map in the regions of all classes; ``class_pointing``, of the pixels
    compared that attain the map's maximum there the share that lies in the region of a. Both are averaged over the
    classes of the image, which takes out the advantage of large objects: the shares of one map add up to 1 over K
    classes, so a class-blind method, which gives every class the same map, scores exactly 1/K. A perfect one scores 1.

    A map that is zero in all regions, or holds NaN, makes ``class_energy`` NaN; a class without a pixel of its own
    counts 0. :class:`litcam.metrics.ClassDiscrimination` counts such images apart.

    Args:
        heatmaps: [B, K, H, W] in [0, 1], the maps of K ≥ 2 classes of each image.
        regions: bool [B, K, H, W], the true region of each of these classes.

    Returns:
        Two float64 tensors [B] by name.

    Raises:
        InputError: if shapes or dtypes are not these.
    """
    if heatmaps.ndim != 4 or heatmaps.shape[1] < 2 or not heatmaps.is_floating_point():
        raise InputError(
            "heatmaps have to be a float tensor [B, K, H, W] of at least two classes, "
            f"not {heatmaps.dtype} {list(heatmaps.shape)}."
        )
    check_regions(regions, heatmaps)
    own = own_regions(regions)
    compared = own.any(1, keepdim=True).expand_as(own)
    values = heatmaps.double()
    highest = values.masked_fill(~compared, -torch.inf)
    highest_pixels = compared & (highest == highest.amax((-2, -1), keepdim=True))
    energy = (values * own).sum((-2, -1)) / (values * compared).sum((-2, -1))  # [B, K]
    pointing = count_pixels(highest_pixels & own) / count_pixels(highest_pixels)  # [B, K]
    return {"class_energy": energy.mean(1), "class_pointing": pointing.mean(1)}


def own_regions(regions: Tensor) -> Tensor:
    """Regions [B, K, H, W] without the pixels that belong to several of the K classes."""
    return regions & (regions.sum(1, keepdim=True) == 1)
