"""AGCAM: Attention Guided CAM."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from litcam.errors import check_choice
from litcam.explainers.base import Explainer, register
from litcam.vit.balanced import BalancedMode
from litcam.vit.context import autograd_anywhere
from litcam.vit.gradients import attention_gradients, class_gradients, graph_of
from litcam.vit.readout import look_first, may_replay
from litcam.vit.sdpa import AttentionCall, full
from litcam.vit.trace import AttentionTrace, Autograd

Fusion = Literal["sum", "mean", "max"]
FUSIONS = ("sum", "mean", "max")
_ROWS_AT_ONCE = 32  # query rows of an N×N product that are held at a time where every row counts


class _Layer(NamedTuple):
    """What AGCAM keeps of an attention call, P prefix tokens."""

    scores: Tensor  # [B, H, P, N]
    value: Tensor  # [B, H, N, d]
    output: Tensor  # [B, H, P, d]


@register("agcam")
class AGCAM(Explainer):
    """Attention Guided CAM (Leem & Seo, AAAI 2024), equation 8: Σ over layers k and heads h of F ⊙ ReLU(α).

    F = sigmoid(S) are the scores of the class token's query row, renormalised (equation 2), and α = ∂y_c/∂A the
    gradient of the class's raw logit at that row, run along the skip connections and MLPs only (equations 3 to 7): the
    input of every attention is cut from the graph. Then no token but the class token carries gradient, so its way
    through the net is replayed alone, from the recorded attention outputs; α = (∂y_c/∂output)·Vᵀ. No N×N matrix is
    built.

    Where the head reads all tokens (average or attention pooling) the sum runs over the query rows of all of them, and
    one forward with the attention inputs cut is differentiated; so it is with any net whose replay does not reproduce
    its logits. An attention pool belongs to the head.

    Args:
        net: the model.
        gradient: ``"skip"`` as in the paper; ``"full"`` differentiates through the attentions too (ordinary
            backpropagation, about two forwards).
        head_fusion: how the heads of a layer become one map.
        layer_fusion: how the layers become one map.
        balanced: gradients in which attention weights, denominators of norms and gates are constants
            (:mod:`litcam.vit.balanced`).

    The map is zero everywhere if no gradient is positive.
    """

    def __init__(
        self,
        net: nn.Module,
        gradient: Literal["skip", "full"] = "skip",
        head_fusion: Fusion = "sum",
        layer_fusion: Fusion = "sum",
        balanced: bool = False,
    ) -> None:
        super().__init__(net)
        check_choice("gradient", gradient, ("skip", "full"))
        check_choice("head_fusion", head_fusion, FUSIONS)
        check_choice("layer_fusion", layer_fusion, FUSIONS)
        self.gradient = gradient
        self.head_fusion = head_fusion
        self.layer_fusion = layer_fusion
        self.balanced = balanced

    @property
    def autograd(self) -> Autograd | None:
        return None if self.gradient == "skip" and may_replay(self.vit) else self._graph

    @property
    def _graph(self) -> Autograd:
        """Of a forward that is differentiated."""
        if self.gradient == "full":
            return "balanced" if self.balanced else "full"
        return "balanced cut" if self.balanced else "cut"

    def trace(self, images: Tensor) -> AttentionTrace:
        look_first(self.vit, images)
        return super().trace(images)

    def read(self, call: AttentionCall) -> Any:
        if self.autograd is not None:
            return None
        prefix = slice(0, self.vit.num_prefix_tokens)
        # The value is cloned: it is a view of q, k and v together, which would all be kept alive.
        return _Layer(call.scores(prefix), call.value.clone(), call.output[:, :, prefix].clone())

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        layers = self._replayed(trace, targets) if self.gradient == "skip" else None
        if layers is None:
            layers = self._differentiated(trace, targets)
        tokens = _fuse(torch.stack(layers), self.layer_fusion)  # [L, K, B, N] -> [K, B, N]
        return self.to_grid(trace, tokens).transpose(0, 1)  # [B, K, gh, gw]

    def _replayed(self, trace: AttentionTrace, targets: Tensor) -> list[Tensor] | None:
        """Maps of the layers, each [K, B, N], from the class token's replay; None if it is not exact."""
        layers: Sequence[_Layer | None] = trace.readings.get(self, [])
        kept = [layer for layer in layers if layer is not None]
        if len(kept) < len(self.vit.blocks):
            return None
        with autograd_anywhere(trace.images.device.type):
            outputs = [layer.output.clone().to(self.vit.dtype).requires_grad_() for layer in kept]
            with BalancedMode() if self.balanced else nullcontext():
                logits = trace.replay(outputs)
            if logits is None:
                return None
        gradients = class_gradients(trace.scores(logits), targets, outputs)
        return [
            self._layer_map(layer.scores, full(gradient) @ full(layer.value).transpose(-2, -1))
            for layer, gradient in zip(kept, gradients, strict=True)
        ]

    def _differentiated(self, trace: AttentionTrace, targets: Tensor) -> list[Tensor]:
        """Maps of the layers, each [K, B, N], from a forward with autograd."""
        # With the inputs cut, rows that do not reach the head have no gradient: all may be summed. Otherwise the rows
        # are those that the head reads.
        if self.gradient == "skip":
            trace.check_tail()
        rows = torch.arange(trace.last_output.shape[1]) if self.gradient == "skip" else trace.readout.tokens
        layers = []
        graph = graph_of(trace, self._graph)
        for layer in attention_gradients(graph, trace.scores(graph.logits), targets):
            total: Tensor | None = None
            for chunk in rows.split(_ROWS_AT_ONCE):
                part = self._head_maps(layer.call.scores(chunk), layer.of_weights(chunk))
                total = part if total is None else total + part
            assert total is not None  # a readout has at least one row
            layers.append(_fuse(total.movedim(2, 0), self.head_fusion))
        return layers

    def _layer_map(self, scores: Tensor, alpha: Tensor) -> Tensor:
        return _fuse(self._head_maps(scores, alpha).movedim(2, 0), self.head_fusion)

    @staticmethod
    def _head_maps(scores: Tensor, alpha: Tensor) -> Tensor:
        """F ⊙ ReLU(α), summed over the query rows: scores [B, H, R, N], α [K, B, H, R, N] -> [K, B, H, N]."""
        return (scores.sigmoid() * alpha.relu()).sum(-2)


def _fuse(maps: Tensor, fusion: str) -> Tensor:
    """Join maps along the first dimension."""
    if fusion == "max":
        return maps.amax(0)
    return maps.sum(0) if fusion == "sum" else maps.mean(0)
