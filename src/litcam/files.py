"""Files are written whole or not at all, also where the disk fills up meanwhile."""

import os
import threading
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, data: bytes | memoryview | str) -> None:
    """Write a file so that under its name there is all of it or what was there before; its folder is made.

    Args:
        path: of the file.
        data: text becomes UTF-8.

    Raises:
        OSError: if the system does not let us; its ``filename`` is the path.
    """
    partial = path.parent / f".{os.getpid()}-{threading.get_ident()}.partial"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data.encode() if isinstance(data, str) else data)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        error.filename, error.filename2 = str(path), None
        raise
