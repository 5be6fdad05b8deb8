"""Which annotation belongs to which image: exact names, endings, folders, and all that cannot be proved refused."""

from pathlib import Path

import pytest
from folder_cases import NFC, NFD

from litcam.data.pairing import Source, pair, parts_of


def pairs(images: list[str], sources: list[str]) -> dict[str, str]:
    found, troubles = pair([parts_of(path) for path in images], [Source(parts_of(path)) for path in sources], "mask")
    assert len(found) + len(troubles) == len(sources), "nothing is lost"
    return {images[image]: sources[source] for image, source in found.items()}


IMAGES = ["train/cat/1.jpg", "train/dog/1.jpg", "train/dog/2.jpg", "val/dog/3.jpg"]


@pytest.mark.parametrize(
    ("images", "sources", "expected"),
    [
        (IMAGES, ["dog/1", "cat/1", "2", "9"], {IMAGES[0]: "cat/1", IMAGES[1]: "dog/1", IMAGES[2]: "2"}),
        (IMAGES, ["dog/1.jpg", "cat/1.jpg"], {IMAGES[0]: "cat/1.jpg", IMAGES[1]: "dog/1.jpg"}),
        (IMAGES, ["1"], {}),
        (IMAGES, ["elsewhere/3"], {IMAGES[3]: "elsewhere/3"}),
        ([], ["1"], {}),
        (["img.png"], ["img.png"], {"img.png": "img.png"}),
        (["img.png"], ["img"], {"img.png": "img"}),
        (["img.png"], ["img.JPG"], {"img.png": "img.JPG"}),  # the image has been converted
        (["img.png"], ["img.jpg", "img"], {"img.png": "img"}),
        (["img.png"], ["img.heic"], {"img.png": "img.heic"}),
        (["img.v2.png", "img.png"], ["img.v2", "img"], {"img.v2.png": "img.v2", "img.png": "img"}),
        (["img.v2.png"], ["img"], {}),
        (["img.png"], ["img.v2"], {}),
        (["img.png", "img.jpg"], ["img.png", "img.jpg"], {"img.png": "img.png", "img.jpg": "img.jpg"}),
        (["img.png", "img.jpg"], ["img"], {}),
        (["img.png", "img.jpg"], ["img.png", "img"], {"img.png": "img.png"}),
        (["img.png", "img.png.jpg"], ["img.png"], {}),
        (["a/1.png", "b/1.png"], ["a/1", "1"], {"a/1.png": "a/1"}),
        (["1.png"], ["1", "1.png"], {}),
        (["a/1.png"], ["a/1", "1"], {"a/1.png": "a/1"}),
        (["a/b/1.png"], ["b\\1.png"], {"a/b/1.png": "b\\1.png"}),
        ([f"{NFD}/{NFC}.png"], [f"{NFC}/{NFD}"], {f"{NFD}/{NFC}.png": f"{NFC}/{NFD}"}),
    ],
)
def test_paths_are_paired_where_it_can_be_proved(
    images: list[str], sources: list[str], expected: dict[str, str]
) -> None:
    assert pairs(images, sources) == expected
    assert pairs(images[::-1], sources[::-1]) == expected


@pytest.mark.parametrize(
    ("images", "sources", "message"),
    [
        (["a/1.png"], ["a/2"], "there is no image to the mask a/2"),
        (["a/1.png", "b/1.png"], ["c/1"], "there is no image to the mask c/1, for a/1.png lies elsewhere"),
        (
            ["a/1.png", "b/1.png", "b/1.jpg"],
            ["1"],
            "the mask 1 fits 3 images, such as a/1.png and b/1.png; name its image with folders and ending: a/1.png.x",
        ),
        (["a/1.png"], ["a/1", "1"], "the mask 1 fits the image a/1.png, which has another, a/1.x; delete one"),
        (["1.png"], ["1.png", "1"], "the mask 1.png fits the image 1.png, which has another, 1.x; delete one"),
    ],
)
def test_what_belongs_to_no_image_says_why(images: list[str], sources: list[str], message: str) -> None:
    given = [Source(parts_of(path), ".x") for path in sources]
    troubles = pair([parts_of(path) for path in images], given, "mask")[1]
    assert message in troubles.values()


def test_the_remedy_for_what_fits_several_images_makes_it_fit_one() -> None:
    images = ["a/1.png", "b/1.png", "a/1.jpg"]
    [trouble] = pair([parts_of(path) for path in images], [Source(("1",))], "mask")[1].values()
    remedy = trouble.rsplit(" ", 1)[1]
    assert pairs(images, [remedy]) == {remedy: remedy}


def test_parts_are_those_of_the_path() -> None:
    assert parts_of(Path("a/b.c/d.png")) == parts_of("a\\b.c\\d.png") == ("a", "b.c", "d.png")
