"""A net in single precision, run in double precision where it calls torch's functions: no module is touched."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class DoubleMode(TorchFunctionMode):
    """Functions get the single precision tensors that they are given in double precision, weights and inputs alike.

    Unlike ``net.double()`` this is not seen by other threads, changes no weight, and holds a copy of one weight at a
    time. A conversion to single precision keeps double precision. Functions that write into a tensor run as they are.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "__get__":  # an attribute of a tensor: its dtype is what functions will see
            return _double_dtype(function(*args, **kwargs))
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            return function(*args, **kwargs)
        if function is Tensor.float:
            function = Tensor.double
        return function(*_doubled(args), **_doubled(kwargs))


def _double_dtype(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


def _doubled(value: Any) -> Any:
    """Arguments with their single precision tensors in double precision."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype is torch.float32 else value
    if type(value) in (tuple, list):
        return type(value)(_doubled(one) for one in value)
    if type(value) is dict:
        return {key: _doubled(one) for key, one in value.items()}
    return _double_dtype(value)
