"""Several threads at once, as in a web demo: what they share, and what acts in one of them alone."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


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
