"""The gallery as JSON for the page: each picture once, maps as bytes of their grids."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from litcam.errors import InputError
from litcam.report.contents import ReportImage, ReportRun
from litcam.report.numbers import finite, lower_is_better, spoken

COLORMAP = "inferno"  # perceptually uniform, also without colour vision
THUMBNAIL_BUDGET = 12_000_000  # bytes of all pictures together; beyond it they become smaller
THUMBNAIL_SIDE = 160
THUMBNAIL_QUALITY = 75


def gallery_json(runs: Sequence[ReportRun]) -> str:
    """Everything that the page's script draws, as JSON that is safe inside a script element."""
    methods = list(dict.fromkeys(method for run in runs for image in run.images for method in image.maps))
    scores = list(
        dict.fromkeys(
            score for run in runs for image in run.images for values in image.scores.values() for score in values
        )
    )
    first = runs[0].images
    data = {
        "colormap": _text(colormap_table().tobytes()),
        "methods": methods,
        "controls": sorted({control for run in runs for control in run.results.get("controls") or ()}),
        "scores": [{"key": score, "name": spoken(score), "lower": lower_is_better(score)} for score in scores],
        "images": [
            {"index": image.index, "id": image.id, "label": image.label, "size": list(image.size)} for image in first
        ],
        "thumbnails": _thumbnails(first),
        "runs": [{"name": run.name, "images": [_seen(image, methods, scores) for image in run.images]} for run in runs],
    }
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def colormap_table() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The 256 colours of maps: uint8 [256, 3]."""
    return np.ascontiguousarray(matplotlib.colormaps[COLORMAP](np.arange(256), bytes=True)[:, :3])


def _seen(image: ReportImage, methods: Sequence[str], scores: Sequence[str]) -> dict[str, Any]:
    """What one checkpoint makes of an image; maps and scores in the order of the methods."""
    grids = [image.maps.get(method) for method in methods]
    return {
        "target": image.target,
        "predicted": image.predicted,
        "probability": _short(image.probability),
        "correct": bool(image.correct),
        "kinds": list(image.kinds),
        "boxes": [[float(end) for end in box] for box in image.boxes],
        "maps": [None if grid is None else [*grid.shape, _text(grid.tobytes())] for grid in grids],
        "scores": [[_short(image.scores.get(method, {}).get(score)) for score in scores] for method in methods],
    }


def _thumbnails(images: Sequence[ReportImage]) -> list[str]:
    smaller = sum(len(image.thumbnail) for image in images) > THUMBNAIL_BUDGET
    return [_text(_reduced(image) if smaller else image.thumbnail) for image in images]


def _reduced(image: ReportImage) -> bytes:
    """The JPEG of an image, no longer than THUMBNAIL_SIDE on its longer side."""
    try:
        with Image.open(io.BytesIO(image.thumbnail)) as encoded:
            if max(encoded.size) <= THUMBNAIL_SIDE:
                return image.thumbnail
            picture = encoded.convert("RGB")
            picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    except OSError as error:
        raise InputError(f"The thumbnail of {image.id!r} is no JPEG ({error}).") from None
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY)
    return buffer.getvalue() if buffer.tell() < len(image.thumbnail) else image.thumbnail


def _short(value: float | None) -> float | None:
    known = finite(value)
    return None if known is None else float(f"{known:.4g}")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
