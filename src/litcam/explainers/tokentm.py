"""TokenTM: attention gradients, weighted by how each token is transformed."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litcam.errors import UnsupportedModelError
from litcam.explainers.base import Explainer, register
from litcam.vit.gradients import AttentionGradient, attention_gradients
from litcam.vit.hooks import first_argument
from litcam.vit.model import ViT
from litcam.vit.readout import Readout
from litcam.vit.recorder import record
from litcam.vit.sdpa import full
from litcam.vit.threads import in_this_thread
from litcam.vit.trace import AttentionTrace, Graph

_EPSILON = 1e-8  # of the port


@dataclass(frozen=True)
class _Forward:
    """A forward with autograd.

    Attributes:
        graph: its logits and attention calls.
        tokens: [B, N, D] before the attention, between attention and MLP, and after the MLP, of each block.
    """

    graph: Graph
    tokens: Sequence[tuple[Tensor, Tensor, Tensor]]


@register("tokentm")
class TokenTM(Explainer):
    """TokenTM, token transformation matters (Wu et al., CVPR 2024): the class token's row of Π_l U_mlp·U_attn·C_0.

    The weight of a token x that becomes y is w = ‖y‖/(‖x‖ + 1e-8)·softmax over tokens of cos(x, y). C_0 = diag ‖E_0‖,
    U_attn = I + (Ā·diag w) ⊙ mean_h (∂y_c/∂A)⁺ with w of the tokens before and after the attention, Ā its mean over the
    heads, and U_mlp = I + diag w with w of those before and after the MLP; y_c is the class's raw logit. The
    definition is that of a third-party port: the authors' own code was not at hand to compare with. Only the row of
    the tokens that the head reads (their mean, where there are several) is formed.

    Args:
        net: the model: blocks of an attention, then an MLP.

    In an average-pooled model the identity gives every patch ‖E_0‖ a share, which may drown the rest.

    Raises:
        UnsupportedModelError: for blocks without tokens between attention and MLP, as parallel ones.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self._parts()

    def _parts(self) -> list[nn.Module]:
        """The modules that read the tokens between attention and MLP, one of each block."""
        parts = [part for block in self.vit.blocks if (part := self.vit.mlp_reader(block)) is not None]
        if len(parts) < len(self.vit.blocks):
            raise UnsupportedModelError(
                f"tokentm needs blocks with an attention and then an MLP, each with a skip connection; those of "
                f"{type(self.vit.net).__name__} are {type(self.vit.blocks[0]).__name__}."
            )
        return parts

    def trace(self, images: Tensor) -> AttentionTrace:
        return self._trace(self.vit, images)

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        if not isinstance(trace.graph, _Forward):  # the trace is of somebody else's forward
            trace = self._trace(replace(self.vit, root=trace.module), trace.images)
        forward = trace.graph
        assert isinstance(forward, _Forward)
        readout = trace.readout
        layers = attention_gradients(forward.graph, trace.scores(forward.graph.logits), targets)
        return self.to_grid(trace, self._rows(forward, layers, readout).transpose(0, 1))

    def _rows(self, forward: _Forward, layers: Sequence[AttentionGradient], readout: Readout) -> Tensor:
        """The readout's row of C_L: [K, B, N]."""
        first = full(forward.tokens[0][0])
        rows = [readout.row(first[..., 0])] * len(layers[0].gradients)
        for layer, (before, between, after) in zip(reversed(layers), reversed(forward.tokens), strict=True):
            of_attention, of_mlp = _weights(before, between), _weights(between, after)  # [B, N]
            mixing = layer.call.weights().mean(1) * of_attention[:, None]  # [B, N, N]
            for position, gradient in enumerate(layer.gradients):
                row = rows[position] * (1 + of_mlp)
                positive = AttentionGradient(layer.call, gradient[None]).of_weights()[0].clamp_(min=0).mean(1)
                rows[position] = row + (row[:, None] @ positive.mul_(mixing))[:, 0]
        lengths: Tensor = torch.linalg.vector_norm(first, dim=-1)
        return torch.stack(rows) * lengths

    def _trace(self, vit: ViT, images: Tensor) -> AttentionTrace:
        before: list[Tensor] = []
        between: list[Tensor] = []
        after: list[Tensor] = []

        def forward(images: Tensor) -> Tensor:
            with ExitStack() as hooks:
                for block, part in zip(vit.blocks, self._parts(), strict=True):
                    hooks.callback(block.register_forward_pre_hook(_keeper(before), with_kwargs=True).remove)
                    hooks.callback(part.register_forward_pre_hook(_keeper(between), with_kwargs=True).remove)
                    hooks.callback(
                        block.register_forward_hook(
                            in_this_thread(lambda block, arguments, output: after.append(output.detach()))
                        ).remove
                    )
                logits: Tensor = vit.root(images)
            return logits

        trace = record(vit, images, {}, "full", forward)
        assert isinstance(trace.graph, Graph)  # asked for
        return replace(trace, graph=_Forward(trace.graph, list(zip(before, between, after, strict=True))))


def _keeper(tokens: list[Tensor]) -> Any:
    """A hook that keeps the first argument of a module."""

    def keep(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tokens.append(first_argument(arguments, keywords).detach())

    return in_this_thread(keep)


def _weights(x: Tensor, y: Tensor) -> Tensor:
    """‖y‖/(‖x‖ + 1e-8)·softmax over tokens of cos(x, y), of tokens [B, N, D]: [B, N]."""
    x, y = full(x), full(y)
    growth: Tensor = torch.linalg.vector_norm(y, dim=-1) / (torch.linalg.vector_norm(x, dim=-1) + _EPSILON)
    return growth * F.cosine_similarity(x, y, dim=-1).softmax(-1)
