"""Reading files of every mode, and what is said about those that cannot be read."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from folder_cases import link, make_pipe, make_socket, oversized
from picture_cases import paint, save_picture, truncate
from PIL import Image

from litcam.data.reading import BadFileError, has_utf8_name, image_size, printable, read_image, read_mask

BOX = (4, 6, 20, 14)
PICTURE = paint((32, 24), BOX)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[("RGB", "png"), ("RGB", "bmp"), ("RGB", "webp"), ("RGBA", "png"), ("L", "png"), ("LA", "png"), ("P", "png")],
        *[
            ("P", "gif"),
            ("1", "png"),
            ("CMYK", "jpg"),
            ("L", "jpg"),
            ("YCbCr", "jpg"),
            ("I;16", "png"),
            ("I;16", "tif"),
        ],
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
        assert image.mode == "I;16"
    else:
        image = Image.fromarray(PICTURE).convert(mode, palette=Image.Palette.ADAPTIVE)
    path = tmp_path / f"picture.{suffix}"
    image.save(path, **({"quality": 100} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}))
    read = read_image(path)
    assert read.shape == (24, 32, 3)
    assert read.dtype == np.uint8
    expected = PICTURE if mode != "1" else np.asarray(image.convert("RGB"))
    assert np.abs(read.astype(int) - expected).max() <= (12 if suffix == "jpg" else 0)
    assert image_size(path) == (32, 24)


def test_alpha_is_dropped_and_a_transparent_palette_colour_too(tmp_path: Path) -> None:
    rgba = np.dstack([PICTURE, np.zeros(PICTURE.shape[:2], np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    assert np.array_equal(read_image(tmp_path / "clear.png"), PICTURE)
    Image.fromarray(PICTURE).convert("P").save(tmp_path / "clear.gif", transparency=0)
    assert read_image(tmp_path / "clear.gif").shape == (24, 32, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_as_exif_says(tmp_path: Path, orientation: int) -> None:
    stored = {
        1: PICTURE,
        2: PICTURE[:, ::-1],
        3: PICTURE[::-1, ::-1],
        4: PICTURE[::-1],
        5: PICTURE.transpose(1, 0, 2),
        6: np.rot90(PICTURE),
        7: PICTURE.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(PICTURE, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, quality=100, exif=exif)
    assert np.abs(read_image(path).astype(int) - PICTURE).max() <= 12
    assert image_size(path) == image_size(path, decode=False) == (32, 24)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_truncated_files_are_damaged(tmp_path: Path, suffix: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    truncate(path, share)
    for read in (read_image, image_size):
        with pytest.raises(BadFileError, match=f"cut.{suffix}: the file is (damaged|not an image)"):
            read(path)


def test_a_jpeg_that_lacks_its_last_bytes_is_damaged(tmp_path: Path) -> None:
    path = truncate(save_picture(tmp_path / "cut.jpg", (200, 150), BOX), 0.9)
    for read in (read_image, image_size):
        with pytest.raises(BadFileError, match="truncated"):
            read(path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "the file is empty"), (b"no picture" * 20, "the file is not an image")]
)
def test_other_content_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(BadFileError, match=f"picture.jpg: {message}"):
        read_image(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"none.jpg: the file does not exist"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(BadFileError, match="the file cannot be opened"):
        read_image(tmp_path)


def test_pixels_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(BadFileError, match="floating-point pixels"):
        read_image(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(BadFileError, match="more than 16 bits"):
        read_image(tmp_path / "wide.tif")


@pytest.mark.filterwarnings("ignore:Image size .* could be decompression bomb")
@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("width", "height", "pixels"), [(12000, 12000, "144.0"), (9460, 9460, "89.5"), (65000, 65000, "4225.0")]
)
def test_images_of_too_many_pixels_are_refused_by_their_header(
    tmp_path: Path, suffix: str, width: int, height: int, pixels: str
) -> None:
    path = oversized(tmp_path / f"huge.{suffix}", width, height)
    sentence = (
        f"huge.{suffix}: the image has {pixels} million pixels, and at most 89.5 million are read; make it smaller"
    )
    for read in (
        read_image,
        image_size,
        lambda path: image_size(path, decode=False),
        lambda path: read_mask(path, "object", (width, height)),
    ):
        with pytest.raises(BadFileError, match=sentence):
            read(path)


def test_the_limit_of_pixels_is_pillows_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_picture(tmp_path / "large.png", (64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    assert read_image(path).shape == (64, 64, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadFileError, match=r"large.png: the image has 4096 pixels, and at most 1000 are read"):
        read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert image_size(oversized(tmp_path / "huge.jpg", 20000, 10000), decode=False) == (20000, 10000)


@pytest.mark.parametrize("make", [make_pipe, make_socket, lambda path: link(path, "/dev/zero")])
def test_only_regular_files_are_opened(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "x.png")
    for read in (read_image, image_size, lambda path: read_mask(path, "object", (8, 8))):
        with pytest.raises(BadFileError, match=r"x.png: the file cannot be opened \(it is a .*, no regular file\)"):
            read(path)
    for target in ("gone.png", "x.png"):
        path.unlink()
        with pytest.raises(BadFileError, match=r"x.png: the link leads (nowhere|in a circle)"):
            read_image(link(path, target))


def test_names_are_printed_in_one_line() -> None:
    name = "a\nb\tc\x1b[31m\u2028é\udce9\ud800 ß"
    assert printable(name) == r"a\nb\tc\x1b[31m\u2028é\xe9\ud800 ß"


def test_names_that_are_not_utf8_can_be_shown() -> None:
    path = Path(os.fsdecode(b"caf\xe9.jpg"))
    assert not has_utf8_name(path)
    assert printable(path) == r"caf\xe9.jpg"
    assert has_utf8_name(Path("café.jpg"))


def test_an_error_from_a_worker_keeps_only_its_sentence() -> None:
    wrapped = "Caught BadFileError in DataLoader worker process 0.\nlitcam.data.reading.BadFileError: a.jpg: is empty\n"
    assert str(BadFileError(wrapped)) == "a.jpg: is empty"
