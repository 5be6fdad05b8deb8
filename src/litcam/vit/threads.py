"""Several threads at once, as in a web demo: changes to the whole process that they share."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager


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

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Have the change made for as long as the context lasts."""
        with self._lock:
            if self._users == 0:
                self._undo.enter_context(self._change())
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._undo.close()
