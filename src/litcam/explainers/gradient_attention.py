"""Attention weighted by its own gradient: generic attention, Grad-CAM on attention, I SAW.

∂y_c/∂A is read off the gradient at the attention's output, (∂y_c/∂output)·Vᵀ: the model runs fused attention, and one
layer's N×N matrices exist at a time.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from litcam.explainers.base import Explainer, register
from litcam.vit.gradients import AttentionGradient, attention_gradients, graph_of, last_block
from litcam.vit.readout import Readout
from litcam.vit.sdpa import full
from litcam.vit.trace import AttentionTrace, Autograd


class _WeightedAttention(Explainer):
    """Skeleton of the methods that want the positive part of A ⊙ ∂y_c/∂A of every layer."""

    def __init__(self, net: nn.Module, balanced: bool = False) -> None:
        super().__init__(net)
        self.balanced = balanced

    @property
    def autograd(self) -> Autograd:
        return "balanced" if self.balanced else "full"

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        readout = trace.readout
        graph = graph_of(trace, self.autograd)
        layers = attention_gradients(graph, trace.scores(graph.logits), targets)
        maps = [
            self.tokens([_of_class(layer, position) for layer in layers], readout)
            for position in range(targets.shape[1])
        ]
        return self.to_grid(trace, torch.stack(maps, 1))  # [B, K, N] -> [B, K, gh, gw]

    @abstractmethod
    def tokens(self, layers: list[AttentionGradient], readout: Readout) -> Tensor:
        """Token values [B, N] of one class from the layers, each with its gradients [1, B, H, N, d]."""


def _of_class(layer: AttentionGradient, position: int) -> AttentionGradient:
    return AttentionGradient(layer.call, layer.gradients[position : position + 1])


def _positive_part(layer: AttentionGradient, rows: slice | Tensor = slice(None)) -> Tensor:
    """Ā = mean over heads of (A ⊙ ∂y_c/∂A)⁺ at the chosen query rows: [B, R, N]."""
    return layer.of_weights(rows)[0].mul_(layer.call.weights(rows)).clamp_(min=0).mean(1)


@register("generic_attention")
class GenericAttention(_WeightedAttention):
    """Generic attention explainability (Chefer, Gur & Wolf, ICCV 2021, equations 5 and 6): R ← R + Ā·R per layer.

    Ā is the mean over the heads of (A ⊙ ∂y_c/∂A)⁺ with the ordinary gradient of the class's raw logit; R = I at first.
    Of R only the row of the tokens that the head reads is wanted (their mean, where there are several), so it is a
    vector–matrix product per layer, last to first.

    Args:
        net: the model.
        balanced: gradients in which attention weights, denominators of norms and gates are constants
            (:mod:`litcam.vit.balanced`).

    The map is zero everywhere if no gradient is positive.
    """

    def tokens(self, layers: list[AttentionGradient], readout: Readout) -> Tensor:
        row = readout.row(full(layers[0].call.query[:, 0, :, 0]))  # [B, N]
        for layer in reversed(layers):
            row = row + (row[:, None] @ _positive_part(layer))[:, 0]
        return row


@register("saw")
class SAW(_WeightedAttention):
    """I SAW, a self-attention weighted explanation (Mallick et al., ICIP 2022): Σ over layers l of α_l·A_l^c.

    The paper gives no code and leaves two terms open; this is litcam's reading of them: A_l^c = mean over heads of
    (A ⊙ ∂y_c/∂A)⁺ at the row of the tokens that the head reads (the mean of their rows), and α_l the layer's share of
    Σ(∂y_c/∂A)⁺ over all heads and rows. The paper scales the map to [0, 1], which upsampling does here.

    Args:
        net: the model.
        balanced: gradients in which attention weights, denominators of norms and gates are constants
            (:mod:`litcam.vit.balanced`).

    The map is zero everywhere if no gradient is positive.
    """

    def tokens(self, layers: list[AttentionGradient], readout: Readout) -> Tensor:
        masses = torch.stack([layer.of_weights()[0].clamp_(min=0).sum((1, 2, 3)) for layer in layers])  # [L, B]
        total = masses.sum(0)
        shares = torch.where(total > 0, masses / total, torch.zeros_like(masses))
        read = [_positive_part(layer, readout.rows) for layer in layers]  # [B, R, N] each
        rows = torch.stack([readout.of_rows(part) @ part for part in read])  # [L, B, N]
        return (shares[:, :, None] * rows).sum(0)


@register("attention_gradcam")
class AttentionGradCAM(Explainer):
    """Grad-CAM on the attention of the last block (the baseline of Chefer, Gur & Wolf, CVPR 2021): (mean_h w_h·A)⁺.

    A is the attention row of the token that the head reads and w_h the mean of ∂y_c/∂A over its patch columns. Where
    the head reads several tokens every row has a weight of its own, and the mean over them comes before the ReLU. Only
    the last block, norm and head are differentiated.

    Args:
        net: the model.
        balanced: gradients in which attention weights, denominators of norms and gates are constants
            (:mod:`litcam.vit.balanced`).

    The map is zero everywhere where the weighted attention is negative; with random weights it often is.

    Raises:
        UnsupportedModelError: if the last block cannot be run again by itself.
    """

    def __init__(self, net: nn.Module, balanced: bool = False) -> None:
        super().__init__(net)
        self.balanced = balanced

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        readout = trace.readout
        block = last_block(trace, self.balanced)
        (layer,) = attention_gradients(block, trace.scores(block.logits), targets)
        alpha = layer.of_weights(readout.rows)  # [K, B, H, R, N]
        weights = alpha[..., self.vit.num_prefix_tokens :].mean(-1, keepdim=True)
        weighted = (weights * layer.call.weights(readout.rows)).mean(2)  # [K, B, R, N]
        return self.to_grid(trace, (readout.of_rows(weighted) @ weighted).relu()).transpose(0, 1)
