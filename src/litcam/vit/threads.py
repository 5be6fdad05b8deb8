"""Several threads at once, as in a web demo: what they share, and what acts in one of them alone."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


class SharedChange:
    """A change to the whole process that several threads may need at once: the first makes it, the last undoes it.

    Without this, two threads that each put back what they found leave the change behind for good.

    Args:
        change: gives the context manager that makes it and undoes it.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[object]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._users = 0
        self._undo = ExitStack()
        self._here = threading.local()

    @property
    def wanted_here(self) -> bool:
        """Whether this thread is among those that need the change: what stands in acts for them alone."""
        return getattr(self._here, "contexts", 0) > 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Have the change made for as long as the context lasts."""
        with self._lock:
            if self._users == 0:
                self._undo.enter_context(self._change())
            self._users += 1
        contexts = getattr(self._here, "contexts", 0)
        self._here.contexts = contexts + 1
        try:
            yield
        finally:
            self._here.contexts = contexts
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo.close()


class SharedFlag:
    """A flag of modules or parameters that several threads may need off at once: the last one puts it back.

    Args:
        name: of the attribute.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._users: dict[int, int] = {}  # of objects whose flag was on, by their id

    @contextmanager
    def off(self, objects: Iterable[object]) -> Iterator[None]:
        """Have the flag of these objects off; of those where it was on, it is on again on every path."""
        with self._lock:
            held = [one for one in objects if getattr(one, self._name) or id(one) in self._users]
            for one in held:
                self._users[id(one)] = self._users.get(id(one), 0) + 1
                setattr(one, self._name, False)
        try:
            yield
        finally:
            with self._lock:
                for one in held:
                    self._users[id(one)] -= 1
                    if self._users[id(one)] == 0:
                        del self._users[id(one)]
                        setattr(one, self._name, True)


_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_finding = threading.Lock()


@contextmanager
def one_at_a_time(net: nn.Module) -> Iterator[None]:
    """Wait until no other thread is in this context with the same net; the thread that is may enter again.

    Args:
        net: the Vision Transformer itself, which several modules may hold. A copy of it is another net.
    """
    with _finding:
        lock = _locks.setdefault(net, threading.RLock())
    with lock:
        yield


class OwnHook:
    """A forward hook of litcam's, which acts only in the thread that registered it, and not in a copy of its module."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook
        self.thread: int | None = threading.get_ident()

    def __call__(self, *arguments: Any) -> Any:
        return self.hook(*arguments) if threading.get_ident() == self.thread else None

    def __getstate__(self) -> dict[str, None]:
        return {"hook": None, "thread": None}


def in_this_thread(hook: Callable[..., Any]) -> OwnHook:
    """The hook as litcam is to register it on a user's module: forwards in other threads run as if it were not there.

    It is told apart from hooks of the user's by its type, see :mod:`litcam.vit.hooks`. For forward hooks and forward
    pre-hooks; the backward hooks of a GPU run in a thread of their own.
    """
    return OwnHook(hook)
