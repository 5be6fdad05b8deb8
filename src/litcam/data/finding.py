"""What lies in a folder: which of its entries are data, and what is wrong with those that cannot be read.

The one place that walks folders. Knows no image and no dataset.
"""

import errno
import os
import stat
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from mimetypes import MimeTypes
from pathlib import Path

Note = Callable[[Path, str], None]  # takes a file or folder that cannot be read, and why

# What systems, disks and shells put among the files of people, in small letters; names that begin with a dot aside.
_SYSTEM = frozenset(
    {
        *("__macosx", "network trash folder", "temporary items"),  # macOS
        *(
            "thumbs.db",
            "ehthumbs.db",
            "desktop.ini",
            "$recycle.bin",
            "recycler",
            "system volume information",
        ),  # Windows
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "lost+found"),  # disks in the network
    }
)
_OTHER_KINDS = MimeTypes()  # what is known to be a file, by its name
_KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))


def is_data(name: str) -> bool:
    """Whether an entry of this name is the user's own: neither hidden nor what a system keeps among the files."""
    return not name.startswith(".") and name.casefold() not in _SYSTEM


def composed(name: str) -> str:
    """A name in the form in which the same letters are the same text (NFC); macOS writes accents apart from theirs."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def by_name(path: Path) -> tuple[str, str]:
    """The key that brings paths into the order of their parts, the same on every system."""
    text = str(path)
    return composed(text).replace(os.sep, "\0"), text


def regular(path: Path) -> Path:
    """The path itself, of a regular file.

    Raises:
        OSError: if nothing is there, or what to open would hang or give no end: a pipe, a socket, a device.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "device")
        raise OSError(errno.EINVAL, f"it is a {kind}, no regular file")
    return path


def trouble_with(path: Path) -> str | None:
    """Why a path is no file that could be opened; None where it is one."""
    try:
        regular(path)
    except FileNotFoundError:
        return "the link leads nowhere" if path.is_symlink() else "the file does not exist"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "the link leads in a circle"
        return f"the file cannot be opened ({error.strerror})"
    return None


def subfolders(folder: Path, note: Note) -> list[Path]:
    """The folders in a folder, in the order of their names; links are followed, what is no data is left out."""
    with _opening(folder, note):
        return sorted((path for path in folder.iterdir() if is_data(path.name) and is_folder(path)), key=by_name)
    return []


def find_files(folder: Path, suffixes: Collection[str], note: Note, aside: Collection[Path] = ()) -> list[Path]:
    """The files with one of these endings in a folder and below, in the order of their paths.

    Links to files and folders are followed. A folder to which several ways lead is read once, by the shortest, and by a
    way without links before others. Hidden and system entries below ``folder`` are left out with all that is in them.

    Args:
        folder: to search; where it lies itself does not matter.
        suffixes: in small letters, with their dot.
        note: takes what may be or hold such files but cannot be read: a link that leads nowhere or in a circle, a pipe,
            socket or device, a folder that is not to be opened, a link to a folder that is read anyway.
        aside: folders that are left out.
    """
    walk = _Walk(suffixes, note, {os.path.realpath(path) for path in aside})
    level = [_Folder(folder, os.path.realpath(folder))]
    while level:
        level = [found for found in sorted(level, key=lambda found: found.linked) if walk.is_new(found)]
        level = [below for found in level for below in walk.entries(found)]
    return sorted(walk.files, key=by_name)


def real_files(paths: Iterable[Path]) -> dict[Path, str]:
    """The file that each path leads to, all links followed."""
    folders: dict[Path, str] = {}
    real = {}
    for path in paths:
        if path.is_symlink():
            real[path] = os.path.realpath(path)
            continue
        folder = path.parent
        if folder not in folders:  # to follow each path from the root takes ten times as long
            folders[folder] = os.path.realpath(folder)
        real[path] = f"{folders[folder]}{os.sep}{path.name}"
    return real


def is_folder(path: Path) -> bool:
    """Whether a path is a folder or a link to one; not where that cannot be known."""
    try:
        return path.is_dir()
    except OSError:  # it is a link through a folder that is not to be opened
        return False


@contextmanager
def _opening(folder: Path, note: Note) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        note(folder, f"the folder cannot be opened ({error.strerror})")


@dataclass(frozen=True)
class _Folder:
    """A folder by the way that leads to it, and the real one."""

    path: Path
    real: str
    linked: bool = False
    above: tuple[str, ...] = ()  # the real folders through which that way leads

    @property
    def leads_back(self) -> bool:
        return any(place == self.real or place.startswith(self.real.rstrip(os.sep) + os.sep) for place in self.above)


@dataclass
class _Walk:
    """A search for files, level by level, so that links in a circle come to an end."""

    suffixes: Collection[str]
    note: Note
    aside: Collection[str]  # real folders
    read: dict[str, Path] = field(default_factory=dict)  # the way by which each real folder has been reached
    files: list[Path] = field(default_factory=list)

    def entries(self, folder: _Folder) -> Iterator[_Folder]:
        """Take the files in a folder; give its folders."""
        entries: list[os.DirEntry[str]] = []
        with _opening(folder.path, self.note), os.scandir(folder.path) as scanned:
            entries = sorted((entry for entry in scanned if is_data(entry.name)), key=lambda entry: entry.name)
        above = (*folder.above, folder.real)
        for entry in entries:
            path = folder.path / entry.name
            if entry.is_file(follow_symlinks=False):
                self._take(path)
            elif entry.is_dir(follow_symlinks=False):
                yield _Folder(path, str(Path(folder.real, entry.name)), folder.linked, above)
            elif is_folder(path):
                yield _Folder(path, os.path.realpath(path), True, above)
            elif (trouble := trouble_with(path)) is None:
                self._take(path)
            elif self._is_wanted(path) or (entry.is_symlink() and _OTHER_KINDS.guess_type(entry.name)[0] is None):
                self.note(path, trouble)

    def is_new(self, folder: _Folder) -> bool:
        """Whether a folder is to be read; one that has been reached by another way is noted."""
        if folder.real in self.aside:
            return False
        if folder.leads_back:
            self.note(folder.path, "the link leads back to a folder that it lies in")
            return False
        first = self.read.setdefault(folder.real, folder.path)
        if first != folder.path:
            self.note(folder.path, f"it is the folder {first} once more, for one of them is a link")
        return first == folder.path

    def _take(self, path: Path) -> None:
        if self._is_wanted(path):
            self.files.append(path)

    def _is_wanted(self, path: Path) -> bool:
        return path.suffix.lower() in self.suffixes
