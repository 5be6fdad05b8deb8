"""What is found among the files of people beside their images."""

import os
import socket
import struct
import unicodedata
import zlib
from pathlib import Path

from picture_cases import save_picture

HIDDEN_FOLDERS = (
    *(".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    *(".Trash-0", ".snapshot", ".AppleDouble", "#recycle", ".thumbnails"),
)
HIDDEN_FILES = ("._0.jpg", ".hidden.jpg", ".DS_Store", "Thumbs.db", "desktop.ini")
NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def clutter(folder: Path) -> Path:
    """Put into a folder what systems, disks and notebooks leave there, with readable images in it."""
    for name in HIDDEN_FOLDERS:
        save_picture(folder / name / "0.jpg", (8, 8))
        save_picture(folder / name / "deeper" / "1.jpg", (8, 8))
    (folder / "@eaDir" / "cat0.png").mkdir()
    (folder / ".empty").mkdir()
    for name in HIDDEN_FILES:
        (folder / name).write_bytes(b"no image")
    return folder


def make_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def make_socket(path: Path) -> Path:
    place = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has at most 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(place)
    return path


def link(path: Path, target: Path | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def oversized(path: Path, width: int, height: int) -> Path:
    """A small file whose header promises an image of any size."""
    data = save_picture(path, (64, 64)).read_bytes()
    if path.suffix == ".png":
        header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        data = data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    elif path.suffix == ".jpg":
        place = data.index(b"\xff\xc0") + 5
        data = data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]
    path.write_bytes(data)
    return path
