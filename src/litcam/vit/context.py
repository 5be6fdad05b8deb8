"""States of a model that litcam needs for a moment, each restored on every path."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from litcam.errors import UnsupportedModelError
from litcam.vit.checkpointing import without_checkpointing
from litcam.vit.threads import SharedChange, SharedFlag, in_this_thread

_training = SharedFlag("training")
_requires_grad = SharedFlag("requires_grad")
_GATES = (nn.Sigmoid, nn.Hardsigmoid)  # constants of a balanced forward


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode and without activation checkpointing; every flag is restored on every path."""
    with without_checkpointing(), _training.off(module.modules()):
        yield


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter of the module requires a gradient, which spares the memory for theirs; restored on every path."""
    with _requires_grad.off(module.parameters()):
        yield


_force_eager = SharedChange(lambda: torch.compiler.set_stance("force_eager"))  # a stance is the whole process's


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules as they were written: compiled code shows neither hooks nor attention calls."""
    with _force_eager():
        yield


@contextmanager
def unbroken(module: nn.Module) -> Iterator[None]:
    """Every part of the module hands the gradient on.

    Raises:
        UnsupportedModelError: from the forward, where the output of a part does not depend on an input that has a
            gradient: the sum over the other ways would be a wrong one.
    """

    def check(part: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        lost = isinstance(output, Tensor) and output.is_floating_point() and _ends_here(output)
        wanted = any(isinstance(argument, Tensor) and argument.requires_grad for argument in arguments)
        if lost and wanted and not isinstance(part, _GATES):
            raise no_gradient(f"{type(part).__name__} of {type(module).__name__}")

    hook = in_this_thread(check)
    hooks = [part.register_forward_hook(hook) for part in module.modules()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _ends_here(output: Tensor) -> bool:
    """Whether the gradient goes no further back than to what was just computed."""
    node: Any = output.grad_fn
    for _ in range(3):  # a cast or a bias may follow the operator
        if node is not None and "NotImplemented" in node.name():  # torch's mark for an operator without a derivative
            return True
        node = node.next_functions[0][0] if node is not None and node.next_functions else None
    return not output.requires_grad


def no_gradient(what: str) -> UnsupportedModelError:
    """The error for a gradient that does not arrive."""
    return UnsupportedModelError(
        f"{what} does not hand on the gradient that this method needs (as quantised layers, detached tensors and a "
        "forward under no_grad do not). Methods without gradients go on: raw_attention, rollout, attention_flow, "
        "reciprocam, token_dropping, rise."
    )


@contextmanager
def autograd_anywhere(device_type: str) -> Iterator[None]:
    """Autograd in full precision, also inside no_grad, inference_mode and autocast."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device_type, enabled=False):
        yield
