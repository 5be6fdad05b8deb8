"""States of a model that litcam needs for a moment, each restored on every path."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from litcam.vit.checkpointing import without_checkpointing
from litcam.vit.threads import SharedChange, SharedFlag

_training = SharedFlag("training")
_requires_grad = SharedFlag("requires_grad")


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
def autograd_anywhere(device_type: str) -> Iterator[None]:
    """Autograd in full precision, also inside no_grad, inference_mode and autocast."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device_type, enabled=False):
        yield
