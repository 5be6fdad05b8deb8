"""One writer at a time has a folder of results: the system holds the lock, and a file says who has it."""

import errno
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from litcam.errors import InputError, unwritable

LOCK_NAME = "writing.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems that have none
_held: set[int] = set()  # descriptors of this process


@contextmanager
def only_writer(*folders: str | Path) -> Iterator[None]:
    """Keep other writers out of folders, which are made where they are missing, until the context ends.

    Those that were made and in which nothing was written are gone afterwards.

    The operating system holds the locks, so that they end with the process that has them, however it ends. A file in
    each folder says who that is.

    Raises:
        InputError: if somebody else has one of them, or had it on another host and was not seen to end; and if it
            cannot be written.
    """
    with ExitStack() as locks:
        for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            try:
                folder.mkdir(parents=True, exist_ok=True)
                locks.callback(_remove_empty, made)
                descriptor = _take(folder / LOCK_NAME)
            except OSError as error:
                raise unwritable(folder, error) from error
            locks.callback(_release, folder / LOCK_NAME, descriptor)
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the inner ones first, as far as nothing has been written to them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _take(path: Path) -> int:
    """The descriptor of a lock file that is ours alone."""
    while True:
        descriptor, made = _open(path)
        _held.add(descriptor)
        try:
            sure = _lock(path, descriptor)
            if _is_at(path, descriptor):
                if not made:
                    _check_left(path, _read_holder(descriptor), sure)
                break
        except BaseException:
            _close(descriptor)
            raise
        _close(descriptor)  # its holder has removed it since it was opened
    try:
        now = datetime.now().astimezone().isoformat(" ", "seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(holder).encode())
    except OSError:
        _release(path, descriptor)
        raise
    return descriptor


def _check_left(path: Path, holder: dict[str, Any], sure: bool) -> None:
    """Raise InputError if a lock file that was left may be that of somebody alive.

    Args:
        path: of the file.
        holder: what it says.
        sure: whether the system has locked it for us, so that nobody on this host has it.
    """
    here = socket.gethostname()
    if not sure or holder.get("host", here) != here:
        raise InputError(
            f"{path.parent} was being written by {_describe(holder)}, and whether it still is cannot be seen from "
            f"{here}; if it is not, delete {path} and start again."
        )


def _open(path: Path) -> tuple[int, bool]:
    """Open a lock file, and tell whether it was not there before."""
    while True:
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR), False


def _lock(path: Path, descriptor: int) -> bool:
    """Lock an open file; False where the file system cannot, so that the file itself is all there is.

    Raises:
        InputError: if somebody else has locked it.
    """
    try:
        if fcntl is None:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{path.parent} is being written by {_describe(_read_holder(descriptor))}; wait for it, or name another "
            "folder: --output."
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path leads to this open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read_holder(descriptor: int) -> dict[str, Any]:
    """What a lock file says of its holder; nothing if that was killed before it could."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        found = json.loads(os.read(descriptor, 4096))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _describe(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    own = holder.get("pid") == os.getpid() and holder.get("host") == socket.gethostname()
    process = f"process {holder.get('pid')}" + (" (this one)" if own else "")
    return f"{process} on {holder.get('host')} since {holder.get('since')}"


def _release(path: Path, descriptor: int) -> None:
    if descriptor in _held:  # a forked process has left it to its parent
        with suppress(OSError):
            if _is_at(path, descriptor):
                path.unlink()  # before others can have the lock
        _close(descriptor)


def _close(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _leave_to_parent() -> None:
    """Close what a forked process inherits: a loading process that outlives its parent would keep the locks."""
    for descriptor in list(_held):
        _close(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
