"""The functional core of the metrics: tensors in, one number per image out. Knows no explainer and no dataset."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from litcam.errors import InputError
from litcam.heatmaps import fill_components
from litcam.vit import evaluating

LOCALIZATION_SCORES = ("pixel_accuracy", "iou", "dice", "precision", "recall", "pointing_game", "energy_inside")
CLASS_SCORES = ("class_energy", "class_pointing")
PAPER_EPSILON = 1e-5  # the AGCAM authors' guard of every division
STEPS = 10  # fractions 0, 0.1, …, 1


def localization(
    heatmaps: Tensor, regions: Tensor, threshold: float = 0.5, prediction: str = "boxes", paper: bool = False
) -> dict[str, Tensor]:
    """How well maps lie on the true regions, under the localization protocol of the AGCAM paper.

    The predicted region is where the map exceeds the threshold (strictly): with ``prediction="boxes"`` the union of the
    filled bounding boxes of its 8-connected components, with ``"mask"`` those pixels themselves. Over all pixels:
    accuracy, IoU, dice, precision, recall, where 0/0 is 1. Of the map itself: ``pointing_game``, of the pixels that
    attain the maximum the share that lies in the region; ``energy_inside``, Σ map in the region / Σ map (NaN for an
    all-zero map).

    Args:
        heatmaps: [B, H, W] in [0, 1].
        regions: bool [B, H, W], the true regions.
        threshold: in [0, 1).
        prediction: ``"boxes"`` or ``"mask"``.
        paper: compute as the authors' code does: ratios are (x + 1e-5)/(y + 1e-5), and predicted boxes reach one pixel
            further to the right and to the bottom.

    Returns:
        Seven float64 tensors [B] by name.

    Raises:
        InputError: if shapes, dtypes or ranges are not these.
    """
    check_maps(heatmaps, "heatmaps")
    _check_regions(regions, heatmaps)
    predicted = heatmaps > threshold
    if prediction == "boxes":
        predicted = fill_components(predicted, margin=int(paper))
    epsilon = PAPER_EPSILON if paper else 0.0
    inside, outside = (predicted & regions), (~predicted & ~regions)
    hits, rejections = _pixels(inside), _pixels(outside)
    predicted_size, true_size, image_size = _pixels(predicted), _pixels(regions), heatmaps[0].numel()
    values, region_values = heatmaps.double(), heatmaps.double() * regions
    highest = heatmaps == heatmaps.amax((-2, -1), keepdim=True)
    return {
        "pixel_accuracy": _ratio(hits + rejections, torch.full_like(hits, image_size), epsilon),
        "iou": _ratio(hits, predicted_size + true_size - hits, epsilon),
        "dice": _ratio(2 * hits, predicted_size + true_size, epsilon),
        "precision": _ratio(hits, predicted_size, epsilon),
        "recall": _ratio(hits, true_size, epsilon),
        "pointing_game": _pixels(highest & regions) / _pixels(highest),
        "energy_inside": region_values.sum((-2, -1)) / values.sum((-2, -1)),
    }


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
    _check_regions(regions, heatmaps)
    own = own_regions(regions)
    compared = own.any(1, keepdim=True).expand_as(own)
    values = heatmaps.double()
    highest = values.masked_fill(~compared, -torch.inf)
    highest_pixels = compared & (highest == highest.amax((-2, -1), keepdim=True))
    energy = (values * own).sum((-2, -1)) / (values * compared).sum((-2, -1))  # [B, K]
    pointing = _pixels(highest_pixels & own) / _pixels(highest_pixels)  # [B, K]
    return {"class_energy": energy.mean(1), "class_pointing": pointing.mean(1)}


def own_regions(regions: Tensor) -> Tensor:
    """Regions [B, K, H, W] without the pixels that belong to several of the K classes."""
    return regions & (regions.sum(1, keepdim=True) == 1)


def perturbation_curves(
    net: nn.Module | Callable[[Tensor], Tensor],
    images: Tensor,
    heatmaps: Tensor,
    targets: Tensor,
    logits: Tensor | None = None,
    batch_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """Class probability while pixels are removed, under the perturbation protocol of the AGCAM paper.

    At fractions 0, 0.1, …, 1 the lowest (LeRF, least relevant first) or highest (MoRF) pixels of each map are set to 0
    in normalised space, on all channels. One stable sort per map serves both orders (MoRF is LeRF reversed) and all
    fractions; both curves share their ends, and the empty image is one for all, so an image costs 18 forwards (19
    without its logits) instead of 22.

    Args:
        net: gives logits [b, C] of normalised images [b, 3, H, W]; a module is run in evaluation mode.
        images: normalised float [B, 3, H, W].
        heatmaps: [B, H, W].
        targets: class indices [B].
        logits: [B, C] of the unperturbed images, where they are known already.
        batch_size: images per forward; bounds the memory.

    Returns:
        The LeRF and the MoRF curve: float64 [B, 11] each, softmax probabilities.

    Raises:
        InputError: if shapes do not fit.
    """
    check_maps(heatmaps, "heatmaps")
    if images.ndim != 4 or heatmaps.shape != (len(images), *images.shape[-2:]) or targets.shape != (len(images),):
        raise InputError(
            f"images {list(images.shape)}, heatmaps {list(heatmaps.shape)} and targets {list(targets.shape)} do not "
            "fit: [B, 3, H, W], [B, H, W] and [B] are needed."
        )
    with evaluating(net) if isinstance(net, nn.Module) else nullcontext(), torch.no_grad():
        clean = _probabilities(net(images) if logits is None else logits, targets)
        empty = net(torch.zeros_like(images[:1])).expand(len(images), -1)
        ends = clean, _probabilities(empty, targets)
        ranks = _ranks(heatmaps.flatten(1))
        lerf = _curve(net, images, ranks, targets, ends, batch_size)
        morf = _curve(net, images, ranks.shape[1] - 1 - ranks, targets, ends, batch_size)
    return lerf, morf


def _curve(
    net: nn.Module | Callable[[Tensor], Tensor],
    images: Tensor,
    ranks: Tensor,
    targets: Tensor,
    ends: tuple[Tensor, Tensor],
    batch_size: int,
) -> Tensor:
    """Probabilities [B, 11] while pixels are removed in the order of their ranks [B, H·W]."""
    batch, pixels = ranks.shape
    steps = torch.arange(1, STEPS, device=images.device)
    step, image = (
        index.flatten() for index in torch.meshgrid(steps, torch.arange(batch, device=images.device), indexing="ij")
    )
    between = []
    for chunk_step, chunk_image in zip(step.split(batch_size), image.split(batch_size), strict=True):
        kept = ranks[chunk_image] >= (pixels * chunk_step // STEPS)[:, None]  # int(H·W·fraction) pixels are removed
        perturbed = images[chunk_image] * kept.view(-1, 1, *images.shape[-2:])
        between.append(_probabilities(net(perturbed), targets[chunk_image]))
    inner = torch.cat(between).view(STEPS - 1, batch).T  # [B, 9]
    return torch.cat([ends[0][:, None], inner, ends[1][:, None]], 1)


def _ranks(values: Tensor) -> Tensor:
    """Place of every value in the rising order of its row [B, n]; ties in the order of the places."""
    order = torch.argsort(values, dim=1, stable=True)
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)  # the inverse permutation


def _probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.double().softmax(1).gather(1, targets[:, None])[:, 0]


def _pixels(mask: Tensor) -> Tensor:
    return mask.sum((-2, -1), dtype=torch.float64)


def _ratio(numerator: Tensor, denominator: Tensor, epsilon: float) -> Tensor:
    """(x + ε)/(y + ε); without ε its limit, in which 0/0 is 1."""
    ratio = (numerator + epsilon) / (denominator + epsilon)
    return torch.where((numerator == 0) & (denominator == 0), torch.ones_like(ratio), ratio)


def check_maps(maps: Tensor, name: str) -> None:
    """Raise InputError unless maps are a float tensor [B, H, W]."""
    if maps.ndim != 3 or not maps.is_floating_point():
        raise InputError(f"{name} have to be a float tensor [B, H, W], not {maps.dtype} {list(maps.shape)}.")


def _check_regions(regions: Tensor, heatmaps: Tensor) -> None:
    if regions.shape != heatmaps.shape or regions.dtype != torch.bool:
        raise InputError(
            f"regions have to be bool {list(heatmaps.shape)} like the heatmaps, "
            f"not {regions.dtype} {list(regions.shape)}."
        )
