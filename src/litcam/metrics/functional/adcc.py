"""Average drop, coherency and complexity of maps, one number per image. Knows no explainer and no dataset."""

from collections.abc import Callable

import torch
from torch import Tensor

from litcam.errors import InputError
from litcam.heatmaps import is_degenerate
from litcam.logits import check_classifies
from litcam.metrics.functional.correlation import pearson
from litcam.metrics.functional.forwards import Net, Precision, check_batch, class_probability, forward, inference

ADCC_SCORES = ("drop", "increase", "coherency", "complexity", "adcc")

Explain = Callable[[Tensor, Tensor], Tensor]  # images [B, 3, H, W] and classes [B] → maps [B, H, W]


def adcc(drop: Tensor, coherency: Tensor, complexity: Tensor) -> Tensor:
    """ADCC (Poppi et al., CVPRW 2021, equation 5): the harmonic mean of coherency, 1 − complexity and 1 − drop.

    All are shares in [0, 1]. Where one of the three is 0, so is ADCC: the limit of the formula.
    """
    return 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))


def adcc_scores(
    explain: Explain,
    net: Net,
    images: Tensor,
    heatmaps: Tensor,
    targets: Tensor,
    logits: Tensor | None = None,
    batch_size: int = 128,
    precision: Precision = "fp32",
    multi_label: bool = False,
) -> dict[str, Tensor]:
    """What is left of an image x under its map s: e = s ⊙ x in normalised space (Poppi et al., CVPRW 2021).

    ``drop``, the share of the class's probability that is lost, max(0, p(x) − p(e)) / p(x), and 0 where p(x) is 0;
    ``increase``, 1 where p(e) > p(x); ``coherency``, (1 + Pearson correlation of s with s′) / 2, where s′ is the map of
    e for the same class, and 0 where s′ is constant or holds NaN; ``complexity``, the mean of s; ``adcc``, see
    :func:`adcc`. ``masked_degenerate`` is 1 where s′ is constant or holds NaN. All are shares in [0, 1].

    Args:
        explain: gives the maps [B, H, W] of images and classes, at the size of the images; called once, with all.
        net: gives logits [b, C] of normalised images [b, 3, H, W]; a module is run in evaluation mode.
        images: normalised float [B, 3, H, W].
        heatmaps: [B, H, W] in [0, 1].
        targets: class indices [B].
        logits: [B, C] of the images, where they are known already.
        batch_size: images per forward; bounds the memory.
        precision: ``"bf16"`` runs the forwards under autocast, not ``explain``.
        multi_label: whether the classes do not exclude each other, so that p is the sigmoid's, not the softmax's.

    Returns:
        Six float64 tensors [B] by name.

    Raises:
        InputError: if shapes, dtypes, ranges or classes do not fit, the maps of ``explain`` are of another shape, or
            the net was declared a regression: of a value there is no share to lose.
    """
    check_classifies(net, "ADCC")
    check_batch(images, heatmaps, targets, logits)
    if heatmaps.amin() < 0 or heatmaps.amax() > 1:
        raise InputError(
            f"heatmaps reach from {float(heatmaps.amin()):g} to {float(heatmaps.amax()):g}; they have to lie in [0, 1]."
        )
    masked = images * heatmaps[:, None].to(images.dtype)
    with inference(net, targets, precision) as call:
        whole = forward(call, images, batch_size) if logits is None else logits
        before, after = (class_probability(y, targets, multi_label) for y in (whole, forward(call, masked, batch_size)))
    again = explain(masked, targets)
    if again.shape != heatmaps.shape:
        raise InputError(f"explain gives {list(again.shape)}; maps {list(heatmaps.shape)} of the images are needed.")
    degenerate = is_degenerate(again)
    drop = torch.where(before > 0, (before - after).clamp(min=0) / before, 0.0)
    coherency = torch.where(degenerate, 0.0, (1 + pearson(heatmaps, again)) / 2)
    complexity = heatmaps.double().mean((1, 2))
    return {
        "drop": drop,
        "increase": (after > before).double(),
        "coherency": coherency,
        "complexity": complexity,
        "adcc": adcc(drop, coherency, complexity),
        "masked_degenerate": degenerate.double(),
    }
