"""Reference implementations written from the papers' formulas: slow, explicit, one image at a time, full NxN matrices.

Nothing here uses hooks or the package under test. Every map is returned unscaled on the patch grid [gh, gw] unless the
function says otherwise. Notation: L blocks, H heads, N tokens (prefix tokens first, then P patches), d head width,
D channels, C classes; S = q k^T * scale, A = softmax(S), y_c the raw logit of the target class c.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from timm.layers.attention import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

Fusion = Literal["sum", "mean", "max"]
Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
EPSILON = 1e-5  # the smoothing constant of the AGCAM authors' localization ratios


class NoMap(Exception):
    """The method is not defined for the net."""


# ---------------------------------------------------------------------------------------------------------------------
# The network, block by block
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Trace:
    """Everything an explicit forward pass of one image computed; all tensors are part of one autograd graph."""

    image: Tensor  # [3, H, W], a leaf that requires grad
    grid: tuple[int, int]
    inputs: list[Tensor]  # per block: the residual stream that enters it [N, D]
    normed: list[Tensor]  # per block: the output of norm1, which is the input of its attention [N, D]
    scores: list[Tensor]  # per block: S [H, N, N]
    attention: list[Tensor]  # per block: A [H, N, N]
    values: list[Tensor]  # per block: v [H, N, d]
    logits: Tensor  # [C]


def forward(net: VisionTransformer, image: Tensor, cut_attention_input: bool = False) -> Trace:
    """Run `net` on one image with explicit attention (Dosovitskiy et al., ICLR 2021, eqs. 1-4) and record every step.

    With `cut_attention_input` the input of each attention (after norm1) is detached, so that gradients of the logits
    run along the skip connections and the MLPs only (AGCAM, Leem & Seo, AAAI 2024, eqs. 3-5).
    """
    _check_supported(net)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = image.detach().clone().requires_grad_(True)
        embed: Any = net.patch_embed
        height, width = embed.dynamic_feat_size((image.shape[-2], image.shape[-1]))
        tokens: Tensor = net.norm_pre(net._pos_embed(embed(leaf[None])))[0]  # [N, D]
        assert tokens.shape[0] == net.num_prefix_tokens + height * width
        trace = Trace(leaf, (height, width), [], [], [], [], [], logits=torch.empty(0))
        results: list[Tensor] = []
        block: Any
        for block in net.blocks:
            trace.inputs.append(tokens)
            normed = block.norm1(tokens)
            if cut_attention_input:
                # A fresh leaf: nothing flows further down, yet A requires grad even when the weights are frozen.
                normed = normed.detach().requires_grad_(True)
            branch, scores, attention, values = _attention(block.attn, normed)
            tokens = _rest_of_block(block, tokens, branch)
            trace.normed.append(normed)
            trace.scores.append(scores)
            trace.attention.append(attention)
            trace.values.append(values)
            results.append(tokens)
        trace.logits = net.head_of_blocks(results) if hasattr(net, "taps") else _head(net, tokens)
    assert_faithful(net, image, trace.logits)
    return trace


def assert_faithful(net: VisionTransformer, image: Tensor, logits: Tensor) -> None:
    """Prove the explicit forward pass: its logits are the net's own, to 1e-5."""
    with torch.no_grad():
        expected = net(image[None])[0]
    torch.testing.assert_close(logits.detach(), expected, rtol=1e-5, atol=1e-5)


def _check_supported(net: VisionTransformer) -> None:
    """Refuse what the explicit forward pass does not describe (other blocks, other poolings, training mode)."""
    assert isinstance(net, VisionTransformer), "a timm VisionTransformer is needed"
    assert not net.training, "the net must be in eval mode"
    assert net.global_pool != "", "a pooling is needed"
    for block in net.blocks:
        assert type(block) is Block or is_parallel(block), "only the plain pre-norm block is covered"
        assert type(block.attn) is Attention, "only the plain attention is covered"
        assert block.attn.gate is None, "gated attention is not covered"


def _attention(attn: Any, normed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Multi-head self-attention (Vaswani et al. 2017, eq. 1) of [N, D]: the output [N, D], S, A and v."""
    n, heads = normed.shape[0], attn.num_heads
    q, k, v = attn.qkv(normed).reshape(n, 3, heads, -1).permute(1, 2, 0, 3)  # each [H, N, d]
    q, k = attn.q_norm(q), attn.k_norm(k)
    scores = (q @ k.transpose(1, 2)) * attn.scale  # [H, N, N]
    attention = torch.softmax(scores, dim=-1)
    mixed = (attention @ v).permute(1, 0, 2).reshape(n, -1)  # [N, H * d]
    return attn.proj(attn.norm(mixed)), scores, attention, v


def _rest_of_block(block: Any, tokens: Tensor, branch: Tensor) -> Tensor:
    """Add the attention branch to the residual stream, then the MLP branch (ViT, eqs. 2-3); or both at once."""
    middle = tokens + block.ls1(branch)
    read = block.norm1(tokens) if is_parallel(block) else block.norm2(middle)
    out: Tensor = middle + block.ls2(block.mlp(read))
    return out


def is_parallel(block: Any) -> bool:
    """Whether the MLP reads what the attention reads (Dehghani et al. 2023, section 2)."""
    return getattr(block, "parallel", False)


def _head(net: VisionTransformer, tokens: Tensor) -> Tensor:
    """Final norm, pooling and classifier of the tokens [N, D]: the raw logits [C]."""
    return net.forward_head(net.norm(tokens[None]))[0]


def _gradients(trace: Trace, target: int, of: list[Tensor]) -> list[Tensor]:
    """The ordinary gradients d y_c / d t of the raw target logit for each tensor t in `of`."""
    with torch.inference_mode(False), torch.enable_grad():
        return list(torch.autograd.grad(trace.logits[target], of, retain_graph=True))


def head_rows(net: VisionTransformer) -> list[int] | None:
    """The prefix tokens that the head reads: [0], or [0, 1] of a distilled model; None if it averages the patches."""
    if net.global_pool in ("avg", "map"):
        return None
    return [0, 1] if isinstance(net, VisionTransformerDistilled) else [0]


def readout_weights(net: VisionTransformer, count: int) -> Tensor:
    """The features that the head reads, each one weighted mean of tokens: the weights [F, N] of every feature.

    A net may tell its own by a function `readout` of the count of tokens. Otherwise the class token; distilled: class
    and distillation token; pooled: the mean of the patches.
    """
    dtype = next(net.parameters()).dtype
    own: Callable[[int], Tensor] | None = getattr(net, "readout", None)
    if own is not None:
        return own(count).to(dtype)
    if net.global_pool in ("max", "avgmax"):
        raise NoMap
    rows = head_rows(net)
    if rows is not None:
        return torch.eye(count, dtype=dtype)[rows]
    weights = torch.zeros(1, count, dtype=dtype)
    weights[:, net.num_prefix_tokens :] = 1 / (count - net.num_prefix_tokens)
    return weights


def readout(net: VisionTransformer, matrix: Tensor) -> Tensor:
    """The readout row [.., N] of [.., N, N]: the rows under the weights of a feature, averaged over the features."""
    row = readout_weights(net, matrix.shape[-2]).mean(dim=0).to(matrix)
    return (row[:, None] * matrix).sum(dim=-2)


def to_grid(net: VisionTransformer, trace: Trace, row: Tensor) -> Tensor:
    """Drop the prefix columns of a row [N] and lay the patches out on the grid [gh, gw] (AGCAM, figure 4)."""
    return row[net.num_prefix_tokens :].reshape(trace.grid).detach()


def _fuse(maps: Tensor, how: Fusion, dim: int) -> Tensor:
    """Reduce one dimension by sum, mean or max."""
    reduce: dict[str, Callable[..., Tensor]] = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}
    return reduce[how](maps, dim=dim)


# ---------------------------------------------------------------------------------------------------------------------
# Explanation methods
# ---------------------------------------------------------------------------------------------------------------------


def agcam(
    net: VisionTransformer,
    image: Tensor,
    target: int,
    gradient: Literal["detached", "full"] = "detached",
    head_fusion: Fusion = "sum",
    layer_fusion: Fusion = "sum",
) -> Tensor:
    """Attention Guided CAM (Leem & Seo, AAAI 2024, eqs. 2, 7, 8): sum over layers, heads of sigmoid(S) * ReLU(dy_c/dA).

    The products are summed over the query rows first (full gradient: over the rows that the head reads), then fused
    over heads, then over layers.
    """
    trace = forward(net, image, cut_attention_input=gradient == "detached")
    count = trace.attention[0].shape[-1]
    rows = list(range(count))
    if gradient == "full":
        rows = readout_weights(net, count).sum(dim=0).nonzero()[:, 0].tolist()
    per_layer = []
    for scores, grad in zip(trace.scores, _gradients(trace, target, trace.attention), strict=True):
        product = torch.sigmoid(scores) * grad.clamp(min=0)  # [H, N, N]
        per_layer.append(product[:, rows].sum(dim=1))  # [H, N]
    maps = torch.stack(per_layer)  # [L, H, N]
    return to_grid(net, trace, _fuse(_fuse(maps, head_fusion, dim=1), layer_fusion, dim=0))


def raw_attention(
    net: VisionTransformer,
    image: Tensor,
    target: int | None = None,
    normalize: Literal["softmax", "sigmoid"] = "softmax",
    layer: int | None = None,
) -> Tensor:
    """Sum over layers and heads of the readout row of A (AGCAM, figure 1) or of sigmoid(S) (figure 3); class-blind.

    `layer` keeps one layer alone (-1: the last).
    """
    trace = forward(net, image)
    matrices = trace.attention if normalize == "softmax" else [torch.sigmoid(s) for s in trace.scores]
    if layer is not None:
        matrices = [matrices[layer]]
    total = torch.zeros_like(matrices[0][0, 0])
    for matrix in matrices:
        for head in matrix:
            total = total + readout(net, head)
    return to_grid(net, trace, total)


def rollout(net: VisionTransformer, image: Tensor, target: int | None = None, start_layer: int = 0) -> Tensor:
    """Rollout (Abnar & Zuidema, ACL 2020, eq. 1): the product of row-normalised mean_h(A) + I, newest on the left."""
    trace = forward(net, image)
    identity = torch.eye(trace.attention[0].shape[-1], dtype=image.dtype, device=image.device)
    product = identity
    for attention in trace.attention[start_layer:]:
        mixed = attention.mean(dim=0) + identity
        product = (mixed / mixed.sum(dim=-1, keepdim=True)) @ product
    return to_grid(net, trace, readout(net, product))


def generic_attention(net: VisionTransformer, image: Tensor, target: int) -> Tensor:
    """Generic attention (Chefer, Gur & Wolf, ICCV 2021, eqs. 5, 6): R = I, then R <- R + mean_h((A * dy_c/dA)^+) R."""
    trace = forward(net, image)
    relevance = torch.eye(trace.attention[0].shape[-1], dtype=image.dtype, device=image.device)
    for attention, grad in zip(trace.attention, _gradients(trace, target, trace.attention), strict=True):
        relevance = relevance + (attention * grad).clamp(min=0).mean(dim=0) @ relevance
    return to_grid(net, trace, readout(net, relevance))


def attention_gradcam(net: VisionTransformer, image: Tensor, target: int) -> Tensor:
    """Grad-CAM on the last attention (baseline of Chefer, Gur & Wolf, CVPR 2021): (mean_h w_h A_row)^+.

    w_h is the mean of the gradient over the patch columns of the same row. With several readout rows every row of every
    head is a channel with a weight of its own; the mean over the rows is taken before the ReLU.
    """
    trace = forward(net, image)
    (grad,) = _gradients(trace, target, [trace.attention[-1]])
    weights = grad[:, :, net.num_prefix_tokens :].mean(dim=-1, keepdim=True)  # [H, N, 1]
    weighted = (weights * trace.attention[-1]).mean(dim=0)  # [N, N]
    return to_grid(net, trace, readout(net, weighted).clamp(min=0))


def saw(net: VisionTransformer, image: Tensor, target: int, scaled: bool = True) -> Tensor:
    """I SAW (Mallick et al., ICIP 2022), in this project's reading: sum_l alpha_l A_l^c, min-max scaled if `scaled`.

    A_l^c is the readout row of mean_h((A * dy_c/dA)^+) and alpha_l the layer's share of the sum of (dy_c/dA)^+ over all
    heads, rows and columns (zero everywhere if no gradient is positive).
    """
    trace = forward(net, image)
    grads = _gradients(trace, target, trace.attention)
    masses = torch.stack([grad.clamp(min=0).sum() for grad in grads])  # [L]
    alphas = masses / masses.sum() if masses.sum() > 0 else torch.zeros_like(masses)
    total = torch.zeros_like(trace.attention[0][0, 0])
    for alpha, attention, grad in zip(alphas, trace.attention, grads, strict=True):
        total = total + alpha * readout(net, (attention * grad).clamp(min=0).mean(dim=0))
    grid = to_grid(net, trace, total)
    return minmax(grid) if scaled else grid


def minmax(heatmap: Tensor) -> Tensor:
    """Scale to [0, 1] (ReciproCAM, eq. 3); a constant map becomes all zeros."""
    low, high = heatmap.min(), heatmap.max()
    return (heatmap - low) / (high - low) if high > low else torch.zeros_like(heatmap)


def saliency(net: VisionTransformer, image: Tensor, target: int) -> Tensor:
    """Vanilla gradient (Simonyan, Vedaldi & Zisserman 2014, section 3.1): max over channels of |dy_c/dx|, [H, W]."""
    trace = forward(net, image)
    (grad,) = _gradients(trace, target, [trace.image])
    return grad.abs().amax(dim=0)


def _patch_features(net: VisionTransformer, image: Tensor, target: int) -> tuple[Trace, Tensor, Tensor]:
    """The patch tokens F of the last block's norm1 output and dy_c/dF, both [P, D] in double precision."""
    trace = forward(net, image)
    (grad,) = _gradients(trace, target, [trace.normed[-1]])
    prefix = net.num_prefix_tokens
    return trace, trace.normed[-1][prefix:].detach().double(), grad[prefix:].double()


def _cam(trace: Trace, channels: Tensor, relu: bool, like: Tensor) -> Tensor:
    """Sum weighted channels [P, D] into a map [gh, gw], with a ReLU if wanted, in the precision of `like`."""
    total = channels.sum(dim=1).reshape(trace.grid)
    return (total.clamp(min=0) if relu else total).to(like.dtype)


def gradcam(net: VisionTransformer, image: Tensor, target: int, relu: bool = True) -> Tensor:
    """Grad-CAM (Selvaraju et al., ICCV 2017, eqs. 1, 2) on patch tokens: ReLU(sum_d mean_p(dy_c/dF_pd) F_pd)."""
    trace, features, grad = _patch_features(net, image, target)
    return _cam(trace, grad.mean(dim=0) * features, relu, image)


def gradcam_plusplus(net: VisionTransformer, image: Tensor, target: int, relu: bool = True, eps: float = 0.0) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, eqs. 5, 7, 19) on patch tokens with g = dy_c/dF.

    alpha = g^2 / (2 g^2 + (sum_q F_q) g^3 + eps), 0 where the denominator is 0; w_d = sum_p alpha_pd ReLU(g_pd).
    The positive factor exp(y_c) of the paper's score scales the whole map and is left out.
    """
    trace, features, grad = _patch_features(net, image, target)
    denominator = 2 * grad**2 + features.sum(dim=0, keepdim=True) * grad**3 + eps
    alpha = torch.where(denominator == 0, 0.0, grad**2 / torch.where(denominator == 0, 1.0, denominator))
    weights = (alpha * grad.clamp(min=0)).sum(dim=0)  # [D]
    return _cam(trace, weights * features, relu, image)


def hirescam(net: VisionTransformer, image: Tensor, target: int, relu: bool = False) -> Tensor:
    """HiResCAM (Draelos & Carin 2020): sum_d dy_c/dF_pd * F_pd at every patch p; the formula itself has no ReLU."""
    trace, features, grad = _patch_features(net, image, target)
    return _cam(trace, grad * features, relu, image)


def reciprocam(
    net: VisionTransformer,
    image: Tensor,
    target: int,
    kernel: Literal["gaussian", "dirac"] = "gaussian",
    keep_class_token: bool = True,
    feature: Literal["norm1", "block"] = "norm1",
    score: Literal["softmax", "logit"] = "softmax",
) -> Tensor:
    """ViT-ReciproCAM (Byun & Lee 2023, eqs. 2, 4), not scaled: re-run the last block once per patch on masked tokens.

    "norm1" masks the input of the attention and leaves the residual stream whole; "block" masks the block's input and
    so both. Without `keep_class_token` all prefix tokens are zeroed.
    """
    trace = forward(net, image)
    block: Any = net.blocks[-1]
    height, width = trace.grid
    heatmap = torch.zeros(height, width, dtype=image.dtype, device=image.device)
    with torch.no_grad():
        for y in range(height):
            for x in range(width):
                weights = _patch_weights(y, x, height, width, kernel)
                mask = torch.full((net.num_prefix_tokens + height * width, 1), float(keep_class_token)).to(heatmap)
                mask[net.num_prefix_tokens :, 0] = weights.reshape(-1).to(heatmap)
                residual, normed = trace.inputs[-1], trace.normed[-1] * mask
                if feature == "block":
                    residual = residual * mask
                    normed = block.norm1(residual)
                branch = _attention(block.attn, normed)[0]
                logits = _head(net, _rest_of_block(block, residual, branch))
                heatmap[y, x] = (torch.softmax(logits, dim=0) if score == "softmax" else logits)[target]
    return heatmap


def _patch_weights(y: int, x: int, height: int, width: int, kernel: str) -> Tensor:
    """The mask around patch (y, x): 1 there, or [1 2 1; 2 4 2; 1 2 1] / 16 cut at the border, not renormalised."""
    weights = torch.zeros(height, width)
    if kernel == "dirac":
        weights[y, x] = 1.0
        return weights
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                weights[y + dy, x + dx] = (2 - abs(dy)) * (2 - abs(dx)) / 16
    return weights


# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------


def localization(
    heatmap: Floats,
    region: Bools,
    threshold: float = 0.5,
    boxes: bool = True,
    paper: bool = False,
) -> dict[str, float]:
    """Localization scores of one image (AGCAM, "Evaluation Metrics") with the pointing game and the energy inside.

    Prediction: heatmap > threshold, with `boxes` the union of the filled boxes of its 8-connected components. Ratios
    are exact with 0/0 = 1; `paper` takes (x + 1e-5) / (y + 1e-5) for the paper's five scores and fills each box one
    pixel further to the right and to the bottom. pointing_game and energy_inside are not the paper's: always exact.
    """
    heatmap, region = np.asarray(heatmap, dtype=np.float64), np.asarray(region, dtype=bool)
    predicted = heatmap > threshold
    if boxes:
        predicted = _fill_boxes(predicted, extra=1 if paper else 0)
    both = int((predicted & region).sum())
    either = int((predicted | region).sum())
    smooth = EPSILON if paper else 0.0
    maxima = heatmap == heatmap.max()
    return {
        "pixel_accuracy": _ratio(int((predicted == region).sum()), region.size, smooth),
        "iou": _ratio(both, either, smooth),
        "dice": _ratio(2 * both, int(predicted.sum()) + int(region.sum()), smooth),
        "precision": _ratio(both, int(predicted.sum()), smooth),
        "recall": _ratio(both, int(region.sum()), smooth),
        "pointing_game": _ratio(int((maxima & region).sum()), int(maxima.sum()), 0.0),
        "energy_inside": _ratio(float(heatmap[region].sum()), float(heatmap.sum()), 0.0),
    }


def _ratio(x: float, y: float, smooth: float) -> float:
    """(x + smooth) / (y + smooth), and 1 for 0/0."""
    return 1.0 if y + smooth == 0 else (x + smooth) / (y + smooth)


def _fill_boxes(mask: Bools, extra: int) -> Bools:
    """The union of the filled bounding boxes of the components, each `extra` pixels larger right and down, clipped."""
    filled = np.zeros_like(mask)
    for component in _components(mask):
        rows, columns = [y for y, _ in component], [x for _, x in component]
        filled[min(rows) : max(rows) + 1 + extra, min(columns) : max(columns) + 1 + extra] = True
    return filled


def _components(mask: Bools) -> list[list[tuple[int, int]]]:
    """The 8-connected components of a mask as lists of (row, column), by flood fill."""
    height, width = mask.shape
    seen: set[tuple[int, int]] = set()
    components = []
    for start in zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True):
        if start in seen:
            continue
        seen.add(start)
        component, stack = [], [start]
        while stack:
            y, x = stack.pop()
            component.append((y, x))
            for v in range(max(y - 1, 0), min(y + 2, height)):
                for u in range(max(x - 1, 0), min(x + 2, width)):
                    if mask[v, u] and (v, u) not in seen:
                        seen.add((v, u))
                        stack.append((v, u))
        components.append(component)
    return components


def perturbation(net: VisionTransformer, image: Tensor, heatmap: Floats, target: int) -> tuple[Floats, Floats]:
    """LeRF and MoRF curves [11] (Samek et al. 2017, AGCAM protocol): y with 0, 10, .., 100 % of the pixels removed.

    `heatmap` [H, W] is already upsampled; removed pixels are 0 on all channels of the normalised image; y is the
    softmax probability of the target. Among equal heatmap values the first pixel in reading order goes first.
    """
    values = np.asarray(heatmap, dtype=np.float64).reshape(-1)
    lerf = _removal_curve(net, image, np.argsort(values, kind="stable"), target)
    morf = _removal_curve(net, image, np.argsort(-values, kind="stable"), target)
    return lerf, morf


def _removal_curve(net: VisionTransformer, image: Tensor, order: npt.NDArray[np.intp], target: int) -> Floats:
    """The target's probability after the first int(H W k / 10) pixels of `order` were set to 0, for k = 0 .. 10."""
    curve = np.zeros(11)
    for k in range(11):
        removed = torch.from_numpy(order[: order.size * k // 10].copy()).to(image.device)
        perturbed = image.detach().clone().reshape(image.shape[0], -1)
        perturbed[:, removed] = 0.0
        with torch.no_grad():
            curve[k] = torch.softmax(net(perturbed.reshape(1, *image.shape))[0], dim=0)[target].item()
    return curve
