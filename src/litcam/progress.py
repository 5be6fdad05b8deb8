"""How far a long piece of work is: a bar in a terminal, a line now and then where there is none."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 30.0  # seconds between two lines

Advance = Callable[[int], None]
Item = TypeVar("Item")


@contextmanager
def progress(description: str, total: int, done: int = 0, unit: str = "images") -> Iterator[Advance]:
    """Show on stderr what is done, how fast it goes and how long the rest takes.

    Where stderr is no terminal (a file, a CI, a notebook's shell) it is a plain line every 30 seconds, also while the
    first batch is still at work.

    Args:
        description: What is being done, in front of the numbers.
        total: How much there is to do.
        done: How much of it was done before.
        unit: What is counted.

    Yields:
        A function to call with how much more is done.
    """
    console = Console(stderr=True)
    with (_bar if console.is_terminal else _lines)(console, description, total, done, unit) as advance:
        yield advance


def track(items: Iterable[Item], description: str, total: int, unit: str = "images") -> Iterator[Item]:
    """Hand on items one by one, and show how many were asked for; see :func:`progress`."""
    with progress(description, total, unit=unit) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def _bar(console: Console, description: str, total: int, done: int, unit: str) -> Iterator[Advance]:
    pace = Pace(total, done)
    numbers = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    columns = (TextColumn("{task.description}", markup=False), *numbers, TextColumn("{task.fields[rate]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=total, completed=done, rate="")

        def advance(count: int) -> None:
            pace.done += count
            bar.update(task, advance=count, rate=f"{pace.rate:.1f} {unit}/s")

        yield advance


@contextmanager
def _lines(console: Console, description: str, total: int, done: int, unit: str) -> Iterator[Advance]:
    pace = Pace(total, done)

    def advance(count: int) -> None:
        pace.done += count

    with Ticker(EVERY, lambda: print_line(console, f"{description}: {pace.line(unit)}")):
        yield advance


class Ticker:
    """Does something again and again beside the work, as a context.

    Args:
        seconds: From one time to the next.
        action: What is done; it is not done at the start.
    """

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self._seconds, self._action = seconds, action
        self._ended = Event()
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._action()


class Pace:
    """How fast something gets done, from when this object was made.

    Args:
        total: How much there is to do; infinite where nobody knows.
        done: How much of it was done before.
    """

    def __init__(self, total: float, done: int = 0) -> None:
        self.total, self.done, self._before = total, done, done
        self._started = time.monotonic()

    @property
    def rate(self) -> float:
        """How much is done in a second."""
        return (self.done - self._before) / max(time.monotonic() - self._started, 1e-9)

    def line(self, unit: str) -> str:
        """What is done, how fast, and how long the rest takes: ``64 of 1,000 images, 3.1 images/s, 5 min 2 s left``."""
        known = math.isfinite(self.total)
        line = f"{self.done:,}" + (f" of {self.total:,.0f}" if known else "") + f" {unit}"
        if self.done == self._before:
            return f"{line} after {duration(time.monotonic() - self._started)}"
        left = f", {duration((self.total - self.done) / self.rate)} left" if known else ""
        return f"{line}, {self.rate:.1f} {unit}/s{left}"


def duration(seconds: float) -> str:
    """A time in its two largest units: 8 s, 5 min 2 s, 3 h 20 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def print_line(console: Console, line: str, style: str | None = None) -> None:
    """Print a line as it is, brackets and all: unwrapped, at once, in no colour but that of ``style``."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    console.file.flush()


@rank_zero_only
def say(sentence: str) -> None:
    """Print a sentence beside the results, once for all processes."""
    print_line(Console(stderr=True), sentence)
