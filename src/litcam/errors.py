"""The errors a user can mend: each names what is wrong and the remedy.

The command lines print them in one sentence, without a traceback.
"""

import errno
from collections.abc import Collection

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # what a disk or quota says that takes no more


class LitcamError(Exception):
    """Base of every error that litcam raises on purpose."""


class InputError(LitcamError, ValueError):
    """An argument, image, target, path or configuration value is not what is needed."""


class UnsupportedModelError(LitcamError, TypeError):
    """The model is not a Vision Transformer that litcam can explain."""


class CheckpointError(LitcamError, ValueError):
    """A checkpoint or a file of weights is missing, damaged or unsafe, or does not fit."""


class LostProcessError(LitcamError, RuntimeError):
    """Another process of a training has ended or cannot be reached."""


def unwritable(path: object, error: OSError) -> InputError:
    """The error for results that the system does not let us write to a path, or to the one that the error knows."""
    remedy = "make room there and start again" if error.errno in DISK_FULL else "name another folder: --output"
    return InputError(f"{error.filename or path} cannot be written ({error.strerror or error}); {remedy}.")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise InputError unless an option's value is one of its choices."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}; choose one of {', '.join(map(str, choices))}.")


def check_at_least(name: str, value: int, least: int = 1) -> None:
    """Raise InputError unless a number is as large as it has to be."""
    if value < least:
        raise InputError(f"{name} is {value}; at least {least} is needed.")


def check_threshold(value: float) -> None:
    """Raise InputError unless a threshold of maps in [0, 1] can be exceeded by some of their values."""
    if not 0 <= value < 1:
        raise InputError(f"threshold is {value}; it has to lie in [0, 1).")


def brief(error: BaseException) -> str:
    """The kind of an error, and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")


def some(names: Collection[object], most: int = 3) -> str:
    """The first of several names, and how many more there are."""
    shown = [str(name) for name in names][:most] if isinstance(names, list) else sorted(map(str, names))[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")
