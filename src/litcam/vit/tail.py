"""The tail of a model: what follows its last block, run again on tokens of one's own at next to no cost."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from litcam.errors import UnsupportedModelError
from litcam.vit.context import eager, frozen
from litcam.vit.hooks import first_argument
from litcam.vit.model import ViT
from litcam.vit.precision import tolerance

_DIMMED = 0.7


def run_tail(vit: ViT, module: nn.Module, images: Tensor, answer: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Logits of tokens that leave the last block, whatever the image and the blocks would make of it.

    The blocks are left out, and the image is a foreign one: what the logits owe to anything but these tokens is lost.

    Args:
        vit: the model.
        module: what is called.
        images: [B, 3, H, W], as the module got them.
        answer: gives tokens [R, n, D] for the embedded tokens [1, N, D].

    Returns:
        [R, C]; None where the module does not work that way.
    """
    with ExitStack() as context:
        context.enter_context(_skipped(vit.blocks, answer))
        context.enter_context(eager())
        context.enter_context(frozen(module))
        try:
            logits = module(foreign_image(images))
        except UnsupportedModelError:
            raise
        except Exception:  # of any kind, by what a module does behind its blocks
            return None
    return logits if isinstance(logits, Tensor) and logits.ndim == 2 else None


def foreign_image(images: Tensor) -> Tensor:
    """An image [1, 3, H, W] of the pixels of the first one, in disorder and dimmed; black where there is none."""
    if len(images) == 0:
        return images.new_zeros(1, *images.shape[1:])
    pixels = images[0].detach().flatten()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0)).to(pixels.device)
    return (pixels[order] * _DIMMED).view(1, *images.shape[1:])


def agree(again: Tensor, recorded: Tensor, precision: torch.dtype | None = None) -> bool:
    """Whether logits are equal within the rounding of a precision; of that of the recorded ones if none is given."""
    if again.shape != recorded.shape:
        return False
    error = (again.double() - recorded.double()).abs().amax()
    most = tolerance(precision or recorded.dtype) * recorded.double().abs().amax()
    return bool(error <= most) or not bool(recorded.isfinite().all())


@contextmanager
def _skipped(blocks: Sequence[nn.Module], answer: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Blocks that hand on what they get, the last of them the answer to it; for this thread alone."""
    thread = threading.get_ident()

    def stand_in(forward: Callable[..., Any], change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            if threading.get_ident() != thread:
                return forward(*arguments, **keywords)
            return change(first_argument(arguments, keywords))

        return run

    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            change = answer if block is blocks[-1] else _same
            block.__dict__["forward"] = stand_in(block.forward, change)
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            del block.__dict__["forward"]
            if forward is not None:
                block.__dict__["forward"] = forward


def _same(tokens: Tensor) -> Tensor:
    return tokens
