"""Gradients of class logits, wherever litcam is called: of attention outputs, with the attention cut or in full."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from litcam.attention import AttentionArguments, AttentionCall, AttentionMode, AttentionTrace, eager


@dataclass(frozen=True)
class AttentionGradient:
    """An attention call inside a graph, and the gradients of some class logits at its output.

    Attributes:
        call: the call; its tensors are detached.
        gradients: [K, B, H, N, d], ∂y_c/∂output for each of K classes.
    """

    call: AttentionCall
    gradients: Tensor


def attention_gradients(trace: AttentionTrace, targets: Tensor, cut: bool) -> list[AttentionGradient]:
    """Gradients of class logits at the output of every attention call, by one more forward and K backward passes.

    Args:
        trace: says which module and which images.
        targets: class indices [B, K].
        cut: whether the input of every attention is cut from the graph, so that gradients run along the skip
            connections and MLPs only (equations 3 to 7 of the AGCAM paper); otherwise the ordinary gradient.

    Returns:
        One entry per block, first block first.
    """
    calls: list[AttentionCall] = []

    def attend_in_graph(arguments: "AttentionArguments", attend: Callable[[], Tensor]) -> Tensor:
        if not arguments.is_self_attention:  # an attention pool belongs to the head
            return attend()
        output = arguments.detached().attend() if cut else attend()
        if not output.requires_grad:
            output.requires_grad_()
        calls.append(arguments.call(output))
        return output

    with autograd_anywhere(trace.images.device.type), eager():
        images = trace.images.clone().to(_parameter_dtype(trace.vit.net)).requires_grad_(not cut)
        with AttentionMode(attend_in_graph):
            logits = trace.module(images)
        outputs = [call.output for call in calls]
        gradients = class_gradients(logits, targets, outputs)
    return [AttentionGradient(_detached(call), gradient) for call, gradient in zip(calls, gradients, strict=True)]


def _detached(call: AttentionCall) -> AttentionCall:
    """The call with tensors that belong to no graph."""
    bias = None if call.bias is None else call.bias.detach()
    return AttentionCall(
        call.query.detach(), call.key.detach(), call.value.detach(), bias, call.scale, call.output.detach()
    )


def class_gradients(logits: Tensor, targets: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """∂y_c/∂input for the classes [B, K] of each image: one [K, …] per input. The graph is freed."""
    targets = targets.clone()  # they may be inference tensors, which autograd cannot keep
    per_class = []
    for position in range(targets.shape[1]):
        chosen = logits.gather(1, targets[:, position : position + 1]).sum()  # images do not mix: a sum separates
        last = position == targets.shape[1] - 1
        gradients = torch.autograd.grad(chosen, inputs, retain_graph=not last, allow_unused=True)
        per_class.append([torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)])
    return [torch.stack(gradients) for gradients in zip(*per_class, strict=True)]


@contextmanager
def autograd_anywhere(device_type: str) -> Iterator[None]:
    """Autograd in full precision, also inside no_grad, inference_mode and autocast."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device_type, enabled=False):
        yield


def _parameter_dtype(net: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in net.parameters() if parameter.is_floating_point())
