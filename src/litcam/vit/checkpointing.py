"""Activation checkpointing, switched off for a thread: nothing runs again in the backward pass.

A forward that runs again there reaches hooks and attention readers a second time, and the reentrant kind runs without
autograd the first time. Both kinds of ``torch.utils.checkpoint`` end in names of that module that are looked up at the
time of the call, however a user's module imported the function; stand-ins take their place.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch.utils import checkpoint as torch_checkpoint

from litcam.vit.threads import SharedChange


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Let ``torch.utils.checkpoint`` run functions as they are, in this thread; other threads go on checkpointing.

    Holds for both kinds, for ``checkpoint_sequential``, and for what torch, timm and transformers build on them. The
    contexts of ``context_fn`` are kept. An autograd function of the user's own that runs its forward again is not seen.
    """
    with _stand_ins():
        yield


@contextmanager
def _stand_in_place() -> Iterator[None]:
    """Stand-ins for the reentrant kind's autograd function and for the saved tensors' hook of the other kind."""
    reentrant = torch_checkpoint.CheckpointFunction
    save = getattr(torch_checkpoint, "_checkpoint_hook", None)
    setattr(reentrant, "apply", classmethod(_apply))  # noqa: B010
    if save is not None:
        setattr(torch_checkpoint, "_checkpoint_hook", _saver(save))  # noqa: B010
    try:
        yield
    finally:
        delattr(reentrant, "apply")
        if save is not None:
            setattr(torch_checkpoint, "_checkpoint_hook", save)  # noqa: B010


_stand_ins = SharedChange(_stand_in_place)


def _apply(kind: type[torch_checkpoint.CheckpointFunction], *args: Any) -> Any:
    """``CheckpointFunction.apply(function, preserve_rng_state, *arguments)``, which is inherited."""
    if not _stand_ins.wanted_here or kind is not torch_checkpoint.CheckpointFunction:
        return super(torch_checkpoint.CheckpointFunction, kind).apply(*args)
    function, _, *arguments = args
    return function(*arguments)


def _saver(save: Callable[[Any], AbstractContextManager[Any]]) -> Callable[[Any], AbstractContextManager[Any]]:
    """The context in which a function that is to be checkpointed runs: tensors are saved as everywhere else."""
    return lambda frame: nullcontext() if _stand_ins.wanted_here else save(frame)
