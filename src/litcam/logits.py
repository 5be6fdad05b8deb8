"""Logits that say something: of NaN a prediction would be made like of any number, and always the same class."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from litcam.errors import InputError


def check_logits(logits: Tensor, whose: str, ids: Sequence[object] = ()) -> None:
    """Raise InputError if logits [B, C] are NaN or infinite.

    Args:
        logits: of a forward.
        whose: which images those are, for the error.
        ids: their names, if they have any.
    """
    finite = logits.isfinite().all(1)
    if bool(finite.all()):
        return
    bad = (~finite).nonzero()[:, 0].tolist()
    first = f", the first of them {ids[bad[0]]!r}," if ids else ""
    raise InputError(
        f"The logits of {len(bad)} of {len(logits)} {whose}{first} are NaN or infinite: the training has diverged or "
        "numbers overflow; take an earlier checkpoint, or train with a lower lr, gradient_clip_val or bf16-mixed."
    )


@contextmanager
def finite_logits(net: nn.Module) -> Iterator[None]:
    """Raise InputError at the end if a forward of a net gave logits that are NaN or infinite: of masked images, say."""
    finite: list[Tensor] = []

    def look(net: nn.Module, images: Any, logits: Any) -> None:
        if isinstance(logits, Tensor):
            finite.append(logits.detach().isfinite().all())

    handle = net.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
    if finite and not bool(torch.stack(finite).all()):  # asked once, for the device has to be waited for
        raise InputError(
            "The model's logits of images with parts removed or replaced are NaN or infinite, so that no number can be "
            "made of them: leave out the metric that does so, or take a model that can see such images."
        )
