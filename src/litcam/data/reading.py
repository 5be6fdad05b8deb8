"""Reading image and mask files, whatever their mode; every failure names the file and the trouble. Knows no dataset."""

import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from litcam.data.batch import VOID
from litcam.data.finding import Note, regular, trouble_with
from litcam.data.records import MaskValues, Record
from litcam.errors import InputError

Pixels = NDArray[np.uint8]
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jfif"})

_ORIENTATION = 0x0112  # the EXIF tag; from 5 on the sides are exchanged
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
)  # as Pillow's readers fail


class SampleError(InputError):
    """A sample cannot be given; raised in a loading process it is still one sentence in the main process."""

    def __init__(self, message: str) -> None:
        # A worker's exception is built anew in the main process, from its traceback: only the last line is the user's.
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].rstrip())


class BadFileError(SampleError):
    """An image, mask or annotation file is not usable; the message names it and the trouble."""


def bad_file(path: Path, trouble: str) -> BadFileError:
    """The error for a file and what is wrong with it."""
    return BadFileError(printable(f"{path}: {trouble}"))


LeaveOut = Callable[[BadFileError], None]  # takes the error of a file that is left out


def noting(leave_out: LeaveOut) -> Note:
    """What takes a file and its trouble, and makes an error of them."""
    return lambda path, trouble: leave_out(bad_file(path, trouble))


def refuse(error: BadFileError) -> None:
    """Leave no file out: raise its error."""
    raise error


def printable(path: Path | str) -> str:
    """A path, or a sentence with paths, as one line of text that can be printed and stored."""
    return "".join(character if _is_plain(character) else _escaped(character) for character in str(path))


def storable(path: Path | str) -> str:
    """A path as text that can be stored; the bytes of a name that is not UTF-8 are written out."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def has_utf8_name(path: Path) -> bool:
    """Whether a path can be written as text."""
    return storable(path) == str(path)


def read_image(path: Path) -> Pixels:
    """The pixels of an image file as uint8 [H, W, 3], RGB, turned upright as its EXIF data say.

    CMYK, palette and grayscale are converted, alpha is dropped, of 16 bits the upper 8 are kept; of several frames the
    first is read.

    Raises:
        BadFileError: if the file is missing, empty, damaged, truncated, or has floating-point pixels.
    """
    with _opened(path) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(path, image)


def image_size(path: Path, decode: bool = True) -> tuple[int, int]:
    """(width, height) of an image file, turned upright.

    Args:
        path: of the file.
        decode: read all of the file, so that damage shows; JPEG files at an eighth of their size, which is faster.

    Raises:
        BadFileError: if the file is missing, empty or damaged.
    """
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        if decode:
            image.draft("RGB", (1, 1))
            image.load()
            _to_rgb(path, image)
        return (height, width) if turned else (width, height)


def read_mask(path: Path, values: MaskValues, size: tuple[int, int]) -> Pixels:
    """The values of a mask file, uint8 [H, W]; an ``"object"`` mask as 0 and 1. See :class:`~litcam.data.Record`.

    Args:
        path: of the file, a palette or grayscale image; for ``"object"`` any image.
        values: what they say.
        size: (width, height) of the image.

    Raises:
        BadFileError: if the file is not readable, has another size than the image, or is a colour picture.
    """
    with _opened(path) as image:
        if image.size != size:
            raise bad_file(path, f"the mask is {by(image.size)}, but its image {by(size)}; draw it at the image's size")
        if values == "object":
            grey = np.asarray(image.convert("L") if image.mode not in ("L", "P", "1", "I;16") else image)
            return np.asarray(2 * grey.astype(np.int64) > grey.max(), dtype=np.uint8)
        pixels = np.asarray(image)
        if pixels.ndim != 2 or pixels.dtype.kind not in "ub" or pixels.max() > VOID:
            raise bad_file(
                path, f"a mask of mode {image.mode} has no class or instance numbers; save it as palette or grayscale"
            )
        return pixels.astype(np.uint8)


def check_mask_values(record: Record, mask: Pixels) -> None:
    """Raise BadFileError if a mask's numbers are not those of the record.

    An instance mask may not have an instance more than there are boxes; a class mask that shows something has to show
    one of the image's classes, for else it counts the classes of other data.
    """
    if record.mask_values == "instances" and record.mask is not None and record.boxes is not None:
        largest = int(mask[mask != VOID].max(initial=0))
        if largest > len(record.boxes):
            raise bad_file(record.mask, f"the mask has an instance {largest}, but there are {len(record.boxes)} boxes")
    if record.mask_values == "classes" and record.mask is not None:
        shown = set(np.unique(mask).tolist()) - {0, VOID}
        own = {label + 1 for label in record.labels}
        if shown and not shown & own:
            numbers, wanted = (", ".join(map(str, sorted(values))) for values in (shown, own))
            raise bad_file(
                record.mask,
                f"the mask shows the classes {numbers}, but not its image's, {wanted}: k is the class of index k - 1 "
                "of these data",
            )


def by(size: tuple[int, int]) -> str:
    """(width, height) as messages show it."""
    return f"{size[0]} by {size[1]}"


def _to_rgb(path: Path, image: Image.Image) -> Pixels:
    if image.mode.startswith("I"):  # 16 bits; Pillow before 10.3 reads such PNG files as 32
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise bad_file(path, "the image has more than 16 bits per channel; save it with 8 or 16")
        return np.repeat((wide >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise bad_file(path, "the image has floating-point pixels, whose range nobody knows; save it with 8 or 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _is_plain(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")  # of which a terminal makes lines or colours


def _escaped(character: str) -> str:
    is_byte = "\udc80" <= character <= "\udcff"  # of a name that is not UTF-8
    return repr(os.fsencode(character))[2:-1] if is_byte else repr(character)[1:-1]


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file whose pixels are not read yet; the many ways in which a reader fails become one error."""
    try:
        with Image.open(regular(path)) as image:
            _check_pixels(path, image.width * image.height)
            yield image
    except BadFileError:
        raise
    except Image.DecompressionBombError as error:  # of more than twice as many pixels
        _check_pixels(path, int(re.findall(r"[0-9]+", str(error))[0]))
    except UnidentifiedImageError:
        empty = path.stat().st_size == 0
        raise bad_file(path, "the file is empty" if empty else "the file is not an image") from None
    except PermissionError as error:
        raise bad_file(path, f"the file cannot be opened ({error.strerror})") from None
    except _DAMAGED as error:
        trouble = trouble_with(path) if isinstance(error, OSError) else None
        raise bad_file(path, trouble or f"the file is damaged ({str(error) or type(error).__name__})") from None


def _check_pixels(path: Path, pixels: int) -> None:
    """Refuse an image of more pixels than Pillow's limit by its header: it would take minutes and gigabytes."""
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and pixels > most:
        raise bad_file(
            path,
            f"the image has {_millions(pixels)} pixels, and at most {_millions(most)} are read; make it smaller, or "
            "cut it into tiles",
        )


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} million" if count >= 1e6 else str(count)
