"""The user's hooks: they fire in the forwards that are the user's, and stay quiet in those that litcam adds.

A hook that changes what a module takes or gives is part of the model, and counts in litcam's forwards too; which hooks
those are is watched in the forward that is explained. Gates stand in the modules' own dicts for that time, so that the
order of the hooks and the handles that remove them stay as they are. Hooks that litcam registers are left alone: those
of :func:`litcam.vit.threads.in_this_thread`, and all that are registered while one of these contexts is active.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from litcam.vit.threads import OwnHook, SharedChange

Function = Callable[..., Any]
Layer = Callable[..., Any]  # called with a hook's function and its arguments

_KINDS = ("_forward_pre_hooks", "_forward_hooks")


@dataclass(frozen=True)
class Hook:
    """A hook as it is registered; the same function may be so several times.

    Attributes:
        module: that it was registered on; None for a hook of all modules.
        kind: the name of the module's dict that holds it.
        id: its key there.
    """

    module: nn.Module | None
    kind: str
    id: int

    @property
    def registered(self) -> dict[int, Function]:
        """The dict that holds it."""
        return _registered(self.module, self.kind)


class WatchedHooks:
    """Which of the user's hooks changed something, so far.

    Attributes:
        changing: they returned something else than they were given, or wrote into it.
    """

    def __init__(self) -> None:
        self.changing: set[Hook] = set()

    def _watch(self, hook: Hook, function: Function, *arguments: Any) -> Any:
        if hook in self.changing:
            return function(*arguments)
        before = _Contents(arguments[1:])
        result = function(*arguments)
        if before.changed() or (result is not None and not _identical(*_returned_and_given(hook, result, arguments))):
            self.changing.add(hook)
        return result


@contextmanager
def watching_hooks(root: nn.Module) -> Iterator[WatchedHooks]:
    """See which of the user's forward hooks change something; they fire as they always do. Of this thread's forwards.

    Args:
        root: its modules' hooks are watched, and the hooks of all modules.
    """
    watched = WatchedHooks()

    def watch(hook: Hook) -> Layer:
        return lambda function, *arguments: watched._watch(hook, function, *arguments)

    with _gates(root, watch):
        yield watched


@contextmanager
def quiet_hooks(root: nn.Module, changing: Collection[Hook] = ()) -> Iterator[None]:
    """Keep the user's hooks quiet in this thread, forward hooks and backward hooks.

    Args:
        root: the hooks of its modules, and the hooks of all modules.
        changing: the forward hooks that fire nevertheless, see :func:`watching_hooks`.
    """
    with without_backward_hooks(), _gates(root, lambda hook: None if hook in changing else _say_nothing):
        yield


@contextmanager
def without_backward_hooks() -> Iterator[None]:
    """Let no module's backward hooks take part in the forwards of this thread, nor in the backward passes of those."""
    with _no_backward_hooks():
        yield


def first_argument(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """The first argument of a call that a hook sees, however it was given; None if there is none."""
    return next(iter((*arguments, *keywords.values())), None)


def _say_nothing(function: Function, *arguments: Any) -> None:
    return None


class _Gate:
    """Stands for a hook while contexts of some threads look on; to all other threads it is the hook itself."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.layers: dict[int, list[Layer]] = {}  # of each thread, outermost context first

    def __call__(self, *arguments: Any) -> Any:
        return self._call(self.layers.get(threading.get_ident(), []), arguments)

    def _call(self, layers: list[Layer], arguments: tuple[Any, ...]) -> Any:
        if not layers:
            return self.function(*arguments)
        return layers[-1](lambda *given: self._call(layers[:-1], given), *arguments)

    def __reduce__(self) -> tuple[Function, tuple[Function]]:
        return _itself, (self.function,)  # in a copy of the module, or its file, the hook is as it was


def _itself(function: Function) -> Function:
    return function


_gating = threading.Lock()


@contextmanager
def _gated(hook: Hook, layer: Layer) -> Iterator[None]:
    """One more layer of this thread before a hook."""
    hooks, thread = hook.registered, threading.get_ident()
    with _gating:
        function = hooks.get(hook.id, _say_nothing)  # another thread may have removed it by now
        gate = function if isinstance(function, _Gate) else _Gate(function)
        if hook.id in hooks:
            hooks[hook.id] = gate
        gate.layers.setdefault(thread, []).append(layer)
        original = gate.function
    try:
        yield
    finally:
        with _gating:
            gate.layers[thread].remove(layer)
            if not gate.layers[thread]:
                del gate.layers[thread]
            if not gate.layers and hooks.get(hook.id) is gate:
                hooks[hook.id] = original


class _Horizon(threading.local):
    next_id: int | None = None  # when this thread's outermost context began: hooks from then on are litcam's


_horizon = _Horizon()


@contextmanager
def _gates(root: nn.Module, layer: Callable[[Hook], Layer | None]) -> Iterator[None]:
    """A layer for each of the user's hooks, where one is wanted."""
    outermost = _horizon.next_id is None
    with ExitStack() as context:
        hooks = _user_hooks(root)
        if outermost:
            # A module from a file may bring hooks with ids that torch has yet to give: it would overwrite them.
            RemovableHandle.next_id = max([RemovableHandle.next_id, *(hook.id + 1 for hook in hooks)])
            _horizon.next_id = RemovableHandle.next_id
            context.callback(setattr, _horizon, "next_id", None)
        for hook in hooks:
            chosen = layer(hook)
            if chosen is not None:
                context.enter_context(_gated(hook, chosen))
        yield


def _user_hooks(root: nn.Module) -> list[Hook]:
    """The forward hooks that litcam did not register: of the root's modules, and those of all modules."""
    hooked = [module for module in _modules(root) if module._forward_hooks or module._forward_pre_hooks]
    hooks = [
        Hook(module, kind, id)
        for module in (None, *hooked)
        for kind in _KINDS
        for id, function in list(_registered(module, kind).items())
        if not isinstance(function, OwnHook)
    ]
    horizon = _horizon.next_id
    return hooks if horizon is None else [hook for hook in hooks if hook.id < horizon]


def _modules(root: nn.Module) -> Iterator[nn.Module]:
    """Every module once, without the names that torch's own walk makes, which take most of its time."""
    seen, found = {root}, [root]
    while found:
        module = found.pop()
        yield module
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)


def _registered(module: nn.Module | None, kind: str) -> dict[int, Function]:
    hooks: dict[int, Function] = getattr(torch_module, f"_global{kind}") if module is None else getattr(module, kind)
    return hooks


class _Contents:
    """What nested containers held, and what their tensors did.

    The numbers are compared, not tensors' versions: those miss what is written through ``.data`` or NumPy, and tensors
    of inference mode have none.
    """

    def __init__(self, value: Any) -> None:
        self.value = value
        self.leaves = list(_leaves(value))
        self.tensors = [(leaf, leaf.grad_fn, _copy(leaf)) for leaf in self.leaves if isinstance(leaf, Tensor)]

    def changed(self) -> bool:
        """Whether they hold something else by now."""
        if not _same_objects(self.leaves, list(_leaves(self.value))):
            return True
        return any(tensor.grad_fn is not node or _differs(copy, tensor) for tensor, node, copy in self.tensors)


def _copy(tensor: Tensor) -> Tensor | None:
    """The numbers, where a tensor has some that can be compared."""
    has_numbers = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    return tensor.detach().clone() if has_numbers else None


def _differs(copy: Tensor | None, tensor: Tensor) -> bool:
    if copy is None:
        return False
    if copy.shape != tensor.shape or copy.dtype != tensor.dtype or copy.device != tensor.device:
        return True
    tensor = tensor.detach()
    return bool(((copy != tensor) & ~((copy != copy) & (tensor != tensor))).any())  # NaN is NaN as before


def _leaves(value: Any) -> Iterator[Any]:
    """The parts of nested containers, in order, and their types and keys."""
    if isinstance(value, Mapping):
        yield type(value)
        for key, part in value.items():
            yield key
            yield from _leaves(part)
    elif isinstance(value, tuple | list):
        yield type(value)
        for part in value:
            yield from _leaves(part)
    elif is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        for part in vars(value).values():
            yield from _leaves(part)
    else:
        yield value


def _same_objects(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))


def _identical(value: Any, other: Any) -> bool:
    """Whether containers hold the very same objects."""
    return _same_objects(list(_leaves(value)), list(_leaves(other)))


def _returned_and_given(hook: Hook, result: Any, arguments: tuple[Any, ...]) -> tuple[Any, Any]:
    """A hook's result, and what it takes the place of."""
    if hook.kind == "_forward_hooks":
        return result, arguments[-1]
    if len(arguments) > 2:  # a pre-hook that takes keywords
        return result, arguments[1:]
    return result if isinstance(result, tuple) else (result,), arguments[1]


@contextmanager
def _modules_without_backward_hooks() -> Iterator[None]:
    """Stand-ins for where a module's call looks up its backward hooks and those of all modules."""
    names = ("_get_backward_hooks", "_get_backward_pre_hooks")
    look_ups = {name: getattr(nn.Module, name) for name in names if hasattr(nn.Module, name)}

    def stand_in(name: str, none: Any) -> Function:
        return lambda module: none if _no_backward_hooks.wanted_here else look_ups[name](module)

    try:
        for name in look_ups:
            setattr(nn.Module, name, stand_in(name, ([], []) if name == "_get_backward_hooks" else []))
        yield
    finally:
        for name, look_up in look_ups.items():
            setattr(nn.Module, name, look_up)


_no_backward_hooks = SharedChange(_modules_without_backward_hooks)
