"""LeGrad: how each layer's attention would raise the class in that layer's own tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from litcam.errors import UnsupportedModelError, check_at_least, check_choice
from litcam.explainers.base import Explainer, register
from litcam.vit.context import autograd_anywhere
from litcam.vit.gradients import class_gradients
from litcam.vit.model import ViT
from litcam.vit.recorder import record
from litcam.vit.sdpa import AttentionCall, full, merge
from litcam.vit.threads import in_this_thread
from litcam.vit.trace import AttentionTrace

_ELEMENTS_AT_ONCE = 2**24  # of an N×N product of all heads


class _Kept(NamedTuple):
    """What is kept of an attention call, P prefix tokens."""

    value: Tensor  # [B, H, N, d]
    output: Tensor  # [B, H, P, d]


@dataclass(frozen=True)
class _Layers:
    """The chosen blocks, each with a graph of its own from its attention's output on.

    Attributes:
        values: [B, H, N, d] of the attention calls of each.
        outputs: [B, H, R, d], of their outputs at some query rows; leaves.
        tokens: [B, R, D] that left each block.
    """

    values: Sequence[Sequence[Tensor]]
    outputs: Sequence[Sequence[Tensor]]
    tokens: Sequence[Tensor]


@register("legrad")
class LeGrad(Explainer):
    """LeGrad (Bousselham et al., ICCV 2025): Σ over layers l of the mean over heads and query rows of (∂s_l/∂A_l)⁺.

    Every layer has a score of its own: s_l = head(norm(mean over all tokens of E_l)), the class's raw logit as if the
    tokens after block l were the last ones and the head read their mean. Its gradient at the same layer's attention
    passes one MLP only, so blocks are cut from each other, and ∂s_l/∂A = (∂s_l/∂output)·Vᵀ. The authors' maps are the
    same scaled to [0, 1], which upsampling does here.

    Args:
        net: the model.
        layers: how many of the last layers count, if the net has them: 2 in the authors' code; None takes all, as in
            their paper.
        readout: ``"mean"`` as above; ``"class_token"`` lets the head read what it always reads, the class token (or
            class and distillation token) of E_l, so that only its query rows count and only it is replayed. Rows are
            then averaged over those of the head's tokens.

    The map is zero everywhere if no gradient is positive.

    Raises:
        InputError: for another readout, or fewer than one layer.
        UnsupportedModelError: when called, for ``"class_token"`` with a model whose head reads more than prefix tokens,
            or if the norm and the head cannot be run again by themselves.
    """

    def __init__(
        self, net: nn.Module, layers: int | None = 2, readout: Literal["mean", "class_token"] = "mean"
    ) -> None:
        super().__init__(net)
        check_choice("readout", readout, ("mean", "class_token"))
        depth = len(self.vit.blocks)
        if layers is not None:
            check_at_least("layers", layers)
        self.layers = depth if layers is None else min(layers, depth)
        self.readout = readout

    def trace(self, images: Tensor) -> AttentionTrace:
        return super().trace(images) if self.readout == "class_token" else self._locally(self.vit, images)

    def read(self, call: AttentionCall) -> Any:
        if self.readout == "mean":
            return None
        # The value is cloned: it is a view of q, k and v together, which would all be kept alive.
        return _Kept(call.value.clone(), call.output[:, :, : self.vit.num_prefix_tokens].clone())

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        if self.readout == "class_token" and not trace.readout.reads_only_first(self.vit.num_prefix_tokens):
            raise UnsupportedModelError(
                f"legrad: {type(trace.module).__name__} has no class token that its head reads alone; "
                "readout='mean' takes every model."
            )
        layers = trace.graph if isinstance(trace.graph, _Layers) else self._replayed(trace)
        if layers is None:  # the trace is of somebody else's forward, or cannot be replayed
            trace = self._locally(replace(self.vit, root=trace.module), trace.images)
            assert isinstance(trace.graph, _Layers)
            layers = trace.graph
        with autograd_anywhere(trace.images.device.type):
            logits = self._logits(trace, layers.tokens)  # [L·B, C]
        outputs = [output for of_block in layers.outputs for output in of_block]
        gradients = iter(class_gradients(trace.scores(logits), targets.repeat(self.layers, 1), outputs))
        rows = slice(None) if self.readout == "mean" else trace.readout.rows
        # Attentions side by side have as many heads each: the mean over all is that of their means.
        total = sum(
            _positive_part(value, next(gradients)[:, :, :, rows]) / len(values)
            for values in layers.values
            for value in values
        )
        assert isinstance(total, Tensor)  # there is a layer
        return self.to_grid(trace, total).transpose(0, 1)

    def _locally(self, vit: ViT, images: Tensor) -> AttentionTrace:
        """A forward whose chosen blocks have graphs of their own."""
        tokens: list[Tensor] = []

        def forward(images: Tensor) -> Tensor:
            with _separate(vit.blocks[-self.layers :], tokens.append):
                logits: Tensor = vit.root(images)
            return logits

        trace = record(vit, images, {}, "cut", forward)
        graph: Any = trace.graph
        for calls in filter(None, graph.calls[-self.layers :]):
            merge(calls)  # those that are no attentions side by side are refused
        values = [[call.value for call in calls] for calls in graph.calls[-self.layers :]]
        return replace(trace, graph=_Layers(values, graph.outputs[-self.layers :], tokens))

    def _replayed(self, trace: AttentionTrace) -> _Layers | None:
        """The same for the prefix tokens alone; None if it is not exact."""
        kept: Sequence[_Kept | None] = trace.readings.get(self, [None])
        tokens: list[Tensor] = []
        with autograd_anywhere(trace.images.device.type), _separate(self.vit.blocks[-self.layers :], tokens.append):
            outputs = [call.output.clone().to(self.vit.dtype).requires_grad_() for call in kept if call is not None]
            if not outputs or trace.replay(outputs) is None:
                return None
        values = [[call.value] for call in kept[-self.layers :] if call is not None]
        return _Layers(values, [[output] for output in outputs[-self.layers :]], tokens)

    def _logits(self, trace: AttentionTrace, layers: Sequence[Tensor]) -> Tensor:
        """What the norm and the head make of the tokens [B, R, D] of each layer: [L·B, C]."""
        every, prefix = layers[-1].shape[1], self.vit.num_prefix_tokens
        for count in dict.fromkeys((prefix if trace.reads_only_prefix else every, every)):
            # In the place of what the head may read comes the mean. The last tokens themselves prove the way.
            means = self.readout == "mean"
            read = [x.mean(1, keepdim=True).expand(-1, count, -1) if means else x[:, :count] for x in layers]
            together = torch.cat([*read, layers[-1].detach()[:, :count]])
            logits = trace.finish(together)
            batch = len(trace.logits)
            if logits is not None and trace.agrees(logits[-batch:]):
                return logits[:-batch]
        raise UnsupportedModelError(
            f"legrad: {type(trace.module).__name__} gives other logits when its norm and head run again on the tokens "
            "of its last block."
        )


@contextmanager
def _separate(blocks: Sequence[nn.Module], keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Cut the input of each block from the graph, and keep what leaves it."""

    def enter(block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if arguments:
            return (arguments[0].detach(), *arguments[1:]), keywords
        name = next(iter(keywords))
        return arguments, {**keywords, name: keywords[name].detach()}

    with ExitStack() as hooks:
        for block in blocks:
            hooks.callback(block.register_forward_pre_hook(in_this_thread(enter), with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(in_this_thread(lambda block, _, output: keep(output))).remove)
        yield


def _positive_part(value: Tensor, gradients: Tensor) -> Tensor:
    """Mean over heads and rows of (∂s/∂A)⁺, from ∂s/∂output [K, B, H, R, d]: [K, B, N]."""
    _, batch, heads, rows, _ = gradients.shape
    columns = full(value).transpose(-2, -1)
    at_once = max(1, _ELEMENTS_AT_ONCE // (batch * heads * columns.shape[-1]))
    sums = [
        sum((full(some) @ columns).clamp_(min=0).sum((1, 2)) for some in of_class.split(at_once, dim=2))
        for of_class in gradients
    ]
    return torch.stack([total for total in sums if isinstance(total, Tensor)]) / (heads * rows)
