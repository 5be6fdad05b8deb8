"""Which annotation or mask belongs to which image, by their paths. Knows no files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from litcam.data.finding import composed
from litcam.data.reading import IMAGE_SUFFIXES

Parts = tuple[str, ...]  # of a path
# An annotation may name the file from which the image at hand was made.
_SUFFIXES = IMAGE_SUFFIXES | {".heic", ".heif", ".avif", ".jp2"}


@dataclass(frozen=True)
class Source:
    """The image that an annotation or a mask names.

    Attributes:
        parts: of the image's path, as far as it is known here, with the image's ending or without.
        ending: what the annotation's own file has beside that, where it is named after the image.
    """

    parts: Parts
    ending: str = ""

    def __str__(self) -> str:
        return "/".join(self.parts)


@dataclass(frozen=True)
class _Fit:
    """The images that agree with the longest part of a source's path."""

    images: list[int]
    closeness: tuple[int, bool]  # how many parts agree, and whether the name does as it stands
    whole: bool  # all that the source says of the path agrees


def parts_of(path: Path | str) -> Parts:
    """The parts of a path as they are compared; those written on Windows have backslashes."""
    return tuple(map(composed, PurePosixPath(str(path).replace("\\", "/")).parts))


def pair(images: Sequence[Parts], sources: Sequence[Source], kind: str) -> tuple[dict[int, int], dict[int, str]]:
    """Which source belongs to which image: to the one whose path agrees with the longest part of the source's.

    At least the names agree, with the ending of the image or without. What fits several images belongs to none of them,
    and so do several sources that fit an image equally well.

    Args:
        images: paths with their endings.
        sources: of the annotations or masks.
        kind: what a source is, for messages.

    Returns:
        The source of each image that has one, {index: index}, and why each of the other sources belongs to no image.
    """
    fits = [_NOTHING if fit is None else fit for fit in _fits(images, sources)]
    claims: dict[int, list[int]] = {}
    for index, fit in enumerate(fits):
        if len(fit.images) == 1:
            claims.setdefault(fit.images[0], []).append(index)
    pairs: dict[int, int] = {}
    rivals: dict[int, int] = {}  # by the source that it keeps from the image
    for image, claimants in claims.items():
        first, *others = sorted(claimants, key=lambda index: fits[index].closeness, reverse=True)
        if not others or fits[first].closeness > fits[others[0]].closeness:
            pairs[image] = first
        else:
            rivals[first] = others[0]
        rivals |= dict.fromkeys(others, first)
    troubles = {}
    for index in sorted(set(range(len(sources))) - set(pairs.values())):
        shown = ["/".join(images[image]) for image in fits[index].images]
        rival = sources[rivals[index]] if index in rivals else None
        troubles[index] = _trouble(kind, sources[index], shown, fits[index].whole, rival)
    return pairs, troubles


def _trouble(kind: str, source: Source, images: list[str], whole: bool, rival: Source | None) -> str:
    """Why a source belongs to none of the images that it fits."""
    if not images:
        return f"there is no image to the {kind} {source}"
    if not whole:
        return f"there is no image to the {kind} {source}, for {images[0]} lies elsewhere"
    if rival is None:
        return (
            f"the {kind} {source} fits {len(images)} images, such as {images[0]} and {images[1]}; name its image with "
            f"folders and ending: {images[0]}{source.ending}"
        )
    return f"the {kind} {source} fits the image {images[0]}, which has another, {rival}{rival.ending}; delete one"


_NOTHING = _Fit([], (0, False), whole=False)


def _fits(images: Sequence[Parts], sources: Sequence[Source]) -> list[_Fit | None]:
    found: list[_Fit | None] = [None] * len(sources)
    waiting = dict(enumerate(source.parts for source in sources))
    for length in range(max(map(len, images), default=0), 0, -1):
        by_ending = _by_ending(images, length)
        for index, parts in list(waiting.items()):
            if len(parts) < length:
                continue
            for name in (parts[-1], _stem(parts[-1])):
                fitting = by_ending.get((*parts[-length:-1], name))
                if fitting:
                    found[index] = _Fit(fitting, (length, name == parts[-1]), whole=length == len(parts))
                    del waiting[index]
                    break
    return found


def _by_ending(images: Sequence[Parts], length: int) -> dict[Parts, list[int]]:
    """The images by the last parts of their paths, the name with its ending and without."""
    endings: dict[Parts, list[int]] = {}
    for index, parts in enumerate(images):
        if len(parts) >= length:
            for name in {parts[-1], _stem(parts[-1])}:
                endings.setdefault((*parts[-length:-1], name), []).append(index)
    return endings


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in _SUFFIXES else name
