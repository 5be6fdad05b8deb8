"""States of a model that litcam needs for a moment, each restored on every path."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode and without activation checkpointing; every flag is restored on every path."""
    training = {child: child.training for child in module.modules() if child.training}
    flags = ("grad_checkpointing", "gradient_checkpointing")  # of timm, of transformers
    checkpointing = [
        (child, flag) for child in module.modules() for flag in flags if getattr(child, flag, False) is True
    ]
    try:
        for child in training:
            child.training = False
        for child, flag in checkpointing:
            setattr(child, flag, False)
        yield
    finally:
        for child in training:
            child.training = True
        for child, flag in checkpointing:
            setattr(child, flag, True)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No parameter of the module requires a gradient, which spares the memory for theirs; restored on every path."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules as they were written: compiled code shows neither hooks nor attention calls."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def autograd_anywhere(device_type: str) -> Iterator[None]:
    """Autograd in full precision, also inside no_grad, inference_mode and autocast."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device_type, enabled=False):
        yield
