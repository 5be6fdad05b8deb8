"""Gradients of class logits, wherever litcam is called: at attention outputs, in the whole net or in its last block."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from litcam.vit.balanced import BalancedMode
from litcam.vit.context import autograd_anywhere, no_gradient, unbroken
from litcam.vit.recorder import record
from litcam.vit.sdpa import AttentionArguments, AttentionCall, full, merge
from litcam.vit.trace import AttentionTrace, Autograd, Graph


@dataclass(frozen=True)
class AttentionGradient:
    """An attention call, and the gradients of some class logits at its output.

    Attributes:
        call: the call; its tensors are detached.
        gradients: [K, B, H, N, d], ∂y_c/∂output for each of K classes.
    """

    call: AttentionCall
    gradients: Tensor

    def of_weights(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """∂y_c/∂A of the chosen query rows, (∂y_c/∂output)·Vᵀ: [K, B, H, R, N], float32 at least."""
        return full(self.gradients[:, :, :, rows]) @ full(self.call.value).transpose(-2, -1)


def attention_gradients(graph: Graph, scores: Tensor, targets: Tensor) -> list[AttentionGradient]:
    """Gradients of class scores at the attention output of every block, by K backward passes.

    Args:
        graph: of :func:`graph_of` or :func:`last_block`, for one use.
        scores: [B, C], of its logits.
        targets: class indices [B, K].

    Returns:
        One entry per block, first block first.
    """
    gradients = iter(class_gradients(scores, targets, graph.all_outputs))
    return [
        AttentionGradient(merge(calls), torch.cat([next(gradients) for _ in calls], 2))  # [K, B, H, N, d]
        for calls in graph.calls
    ]


def graph_of(trace: AttentionTrace, autograd: Autograd) -> Graph:
    """The graph of a trace, by one more forward where it was recorded without.

    Args:
        trace: of a forward with this autograd; any other is run again.
        autograd: ``"cut"`` detaches the input of every attention, so that gradients run along the skip connections and
            MLPs only (equations 3 to 7 of the AGCAM paper); ``"full"`` gives the ordinary gradient; ``"balanced"`` and
            ``"balanced cut"`` are the same with the gradients of :mod:`litcam.vit.balanced`.
    """
    if trace.graph is None:
        trace = record(replace(trace.vit, root=trace.module), trace.images, {}, autograd)
    assert isinstance(trace.graph, Graph)  # asked for
    return trace.graph


def last_block(trace: AttentionTrace, balanced: bool = False) -> Graph:
    """Run the last block, the final norm and the head again, with autograd from the features of the block on.

    Args:
        trace: of any forward.
        balanced: with the gradients of :mod:`litcam.vit.balanced`.

    Raises:
        UnsupportedModelError: if the logits are not those of the trace.
    """
    leaves: list[Tensor] = []
    calls: list[AttentionCall] = []
    outputs: list[Tensor] = []

    def start(features: Tensor) -> Tensor:
        calls.clear()
        outputs.clear()
        leaves.append(features.detach().requires_grad_())
        return leaves[-1]

    def observe(arguments: AttentionArguments, attend: Callable[[], Tensor]) -> Tensor:
        outputs.append(attend())
        calls.append(arguments.detached().call(outputs[-1].detach()))
        return outputs[-1]

    mode = BalancedMode() if balanced else nullcontext()
    with autograd_anywhere(trace.images.device.type), unbroken(trace.module), mode:
        logits, _ = trace.resume_as_recorded(observe, start)
    return Graph(leaves[-1], logits, [calls], [outputs])


def class_gradients(
    scores: Tensor, targets: Tensor, inputs: Sequence[Tensor], optional: Sequence[Tensor] = ()
) -> list[Tensor]:
    """∂y_c/∂input for the classes [B, K] of each image: one [K, …] per input. The graph is freed.

    Args:
        scores: [B, C], see :func:`litcam.logits.class_scores`.
        targets: class indices [B, K].
        inputs: tensors that the scores have to depend on.
        optional: further ones that they may depend on; where they do not, the gradient is 0.

    Raises:
        UnsupportedModelError: if the scores do not depend on one of the inputs.
    """
    if not scores.requires_grad:
        raise no_gradient("A part of the model")
    every = [*inputs, *optional]
    with autograd_anywhere(scores.device.type):
        targets = targets.clone()  # they may be inference tensors, which autograd cannot keep
        per_class = []
        for position in range(targets.shape[1]):
            chosen = scores.gather(1, targets[:, position : position + 1]).sum()  # images do not mix: a sum separates
            last = position == targets.shape[1] - 1
            gradients = torch.autograd.grad(chosen, every, retain_graph=not last, allow_unused=True)
            if any(gradient is None for gradient in gradients[: len(inputs)]):
                raise no_gradient("A part of the model")
            per_class.append([torch.zeros_like(x) if g is None else g for g, x in zip(gradients, every, strict=True)])
        return [torch.stack(gradients) for gradients in zip(*per_class, strict=True)]
