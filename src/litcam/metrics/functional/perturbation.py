"""Perturbation of images by the order of their maps, one curve per image. Knows no explainer and no dataset."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from litcam.errors import InputError
from litcam.metrics.functional.checks import check_maps
from litcam.vit import evaluating

STEPS = 10  # fractions 0, 0.1, …, 1


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
