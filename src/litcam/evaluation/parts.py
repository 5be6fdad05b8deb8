"""Parts: what an evaluation has measured so far, a file per batch, so that it can be killed at any moment and go on."""

import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litcam.errors import InputError, unwritable
from litcam.files import write_whole

Arrays = Mapping[str, NDArray[Any]]
_SEAL = "seal"


class Parts:
    """Arrays by name, a file per batch. What was left by an evaluation of the same plan is kept, else it is deleted.

    A part is kept as well only if it is, to the last bit, what was measured of this batch under this plan: its seal
    says so. To be used by the one writer of the folder (:func:`litcam.lock.only_writer`).

    Args:
        folder: where the files lie; None for a folder that vanishes with this object.
        plan: all that decides the numbers, as JSON has it.
        batches: the images of each batch by their indices.

    Attributes:
        missing: the batches that are still to be measured, by number.
        refused: the names of the files that were deleted though the plan was the same.

    Raises:
        InputError: if the folder cannot be written.
    """

    def __init__(self, folder: str | Path | None, plan: Mapping[str, Any], batches: Sequence[Sequence[int]]) -> None:
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self.folder = Path(self._temporary.name if self._temporary else folder or "")
        self._plan = json.dumps(plan, indent=2, sort_keys=True, default=str).encode()
        self._batches = [list(batch) for batch in batches]
        try:
            same = self._is_planned()
            kept = {self._path(number) for number in range(len(batches)) if same and self._is_sound(number)}
            others = [path for path in self._files() if path not in kept]
            for path in others:  # and nothing else that may lie there
                path.unlink()
            if not same:
                write_whole(self.folder / "plan.json", self._plan)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self.refused = [path.name for path in others if same and path.suffix == ".npz"]
        self.missing = [number for number in range(len(batches)) if self._path(number) not in kept]

    def __iter__(self) -> Iterator[Arrays]:
        """The parts in their order.

        Raises:
            InputError: if one of them is not there, or not as it was.
        """
        for number in range(len(self._batches)):
            yield self._read(number)

    def add(self, number: int, arrays: Arrays) -> None:
        """Keep what was measured of a batch: the whole of it, or nothing.

        Raises:
            InputError: if it cannot be written.
        """
        compact: dict[str, Any] = {name: _compact(array) for name, array in arrays.items()}
        file = io.BytesIO()
        compact[_SEAL] = np.array(self._seal(number, compact))
        np.savez_compressed(file, **compact)
        try:
            write_whole(self._path(number), file.getvalue())
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self.missing.remove(number)

    def collect(self, *names: str) -> dict[str, NDArray[Any]]:
        """Arrays of all parts, one after the other, by name; every file is read once.

        Raises:
            InputError: if one of the parts cannot be read.
        """
        parts = [self._read(number, names) for number in range(len(self._batches))]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _read(self, number: int, names: Sequence[str] | None = None) -> Arrays:
        """Some arrays of a part; or all, with their seal checked."""
        if not self._is_planned():
            raise InputError(
                f"Another evaluation has taken the folder {self.folder} since, and its parts with it; evaluate into a "
                "folder of its own."
            )
        arrays = _load(self._path(number), names)
        if arrays is None or (names is None and not self._is_sound(number, arrays)):
            raise InputError(
                f"{self._path(number)} is not any more what was measured; start the evaluation again, and this part "
                "alone is measured once more."
            )
        return arrays

    def _is_planned(self) -> bool:
        """Whether the folder is that of this plan."""
        path = self.folder / "plan.json"
        return path.is_file() and path.read_bytes() == self._plan

    def _is_sound(self, number: int, arrays: Arrays | None = None) -> bool:
        """Whether a part is what was measured of its batch."""
        found = _load(self._path(number)) if arrays is None else arrays
        return found is not None and str(found.get(_SEAL)) == self._seal(number, found)

    def _seal(self, number: int, arrays: Arrays) -> str:
        """A number of all that a part holds, of the batch and of the plan."""
        digest = hashlib.sha256(self._plan)
        digest.update(json.dumps([number, self._batches[number]]).encode())
        for name in sorted(arrays.keys() - {_SEAL}):
            array = arrays[name]
            digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.npz"

    def _files(self) -> list[Path]:
        """The files that parts have ever been written to."""
        return [path for path in self.folder.glob("*") if re.fullmatch(r"[0-9]{6,}\.npz|\.[0-9-]+\.partial", path.name)]


def _load(path: Path, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]] | None:
    """Arrays of a file by name, all if no names are given; None if it is damaged, lacks one, or is none of ours."""
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in (stored.files if names is None else names)}
    except Exception:  # whatever else than our arrays makes numpy and zipfile stumble
        return None


def _compact(array: NDArray[Any]) -> NDArray[Any]:
    """Small whole numbers in one byte: most of what is counted is."""
    if array.dtype == np.float64 and array.size and ((array == array.round()) & (array >= 0) & (array < 256)).all():
        return array.astype(np.uint8)
    return array
