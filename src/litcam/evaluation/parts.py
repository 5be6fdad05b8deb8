"""Parts: what an evaluation has measured so far, a file per batch, so that it can be killed at any moment and go on."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litcam.errors import unwritable

Arrays = Mapping[str, NDArray[Any]]


class Parts:
    """Arrays by name, a file per batch. What was left by an evaluation of the same plan is kept, else it is deleted.

    Args:
        folder: where the files lie; None for a folder that vanishes with this object.
        plan: all that decides the numbers, as JSON has it.

    Raises:
        InputError: if the folder cannot be written.
    """

    def __init__(self, folder: str | Path | None, plan: Mapping[str, Any]) -> None:
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary else folder or "")
        text = json.dumps(plan, indent=2, sort_keys=True, default=str)
        written = self.folder / "plan.json"
        try:
            if not written.is_file() or written.read_text() != text:
                for file in self._files():  # and nothing else that may lie there
                    file.unlink()
                self.folder.mkdir(parents=True, exist_ok=True)
                written.write_text(text)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def __len__(self) -> int:
        return len(self._files())

    def __iter__(self) -> Iterator[Arrays]:
        """The parts in their order; an array is read when it is asked for."""
        for file in self._files():
            with np.load(file) as arrays:
                yield arrays

    def add(self, arrays: Arrays) -> None:
        """Append a part: the whole of it, or nothing."""
        unfinished = self.folder / "unfinished.npz"
        compact: dict[str, Any] = {name: _compact(array) for name, array in arrays.items()}
        np.savez_compressed(unfinished, **compact)
        unfinished.replace(self.folder / f"{len(self):06}.npz")

    def collect(self, *names: str) -> dict[str, NDArray[Any]]:
        """Arrays of all parts, one after the other, by name; every file is read once."""
        parts = [{name: part[name] for name in names} for part in self]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.npz"))


def _compact(array: NDArray[Any]) -> NDArray[Any]:
    """Small whole numbers in one byte: most of what is counted is."""
    if array.dtype == np.float64 and array.size and ((array == array.round()) & (array >= 0) & (array < 256)).all():
        return array.astype(np.uint8)
    return array
