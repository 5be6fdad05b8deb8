"""What a report is made of. Knows neither how it is computed nor how it is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litcam.errors import InputError

SCHEMA_VERSION = 2  # of results.json
KINDS = ("right for the wrong reason", "wrong but on the object", "methods disagree")


@dataclass(frozen=True)
class ReportImage:
    """One image of the gallery, as one checkpoint sees it.

    Attributes:
        index: place in the dataset.
        id: names the image, a file name for example; any characters.
        label: true class, or classes.
        target: class that the maps explain.
        predicted: class.
        probability: of the predicted class.
        correct: whether the prediction counts as right.
        thumbnail: JPEG of the image as the model saw it (resized and cropped, not normalised).
        size: (H, W) of the model's input in pixels.
        boxes: true boxes (x0, y0, x1, y1) in those pixels, ends exclusive.
        maps: of each method, uint8 [gh, gw], scaled to 0 … 255; zeros for a degenerate map.
        scores: of each method, by name; None where one does not apply.
        kinds: of failure, of ``KINDS`` or your own.
    """

    index: int
    id: str
    label: str
    target: str
    predicted: str
    probability: float
    correct: bool
    thumbnail: bytes
    size: tuple[int, int]
    boxes: Sequence[tuple[float, float, float, float]]
    maps: Mapping[str, NDArray[np.uint8]]
    scores: Mapping[str, Mapping[str, float | None]]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportRun:
    """One checkpoint: its scores and its gallery.

    Attributes:
        name: of the checkpoint.
        results: what ``results.json`` holds, of schema version 2.
        images: of the gallery; every run of a report has the same ones in the same order.
    """

    name: str
    results: Mapping[str, Any]
    images: Sequence[ReportImage] = ()


@dataclass(frozen=True)
class Drift:
    """How maps change from each checkpoint to the next.

    Attributes:
        names: of the n checkpoints, in their order.
        correlation: of each method, n - 1 mean correlations of its maps with those of the checkpoint before.
        iou: of each method, n - 1 mean IoUs of the regions where those maps exceed 0.5.
    """

    names: Sequence[str]
    correlation: Mapping[str, Sequence[float]]
    iou: Mapping[str, Sequence[float]]


def check_contents(runs: Sequence[ReportRun], drift: Drift | None) -> None:
    """Raise InputError unless runs and drift fit together and can be shown."""
    if not runs:
        raise InputError("runs is empty; a report needs one checkpoint at least.")
    for run in runs:
        version = run.results.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(f"The results of {run.name!r} are of schema {version!r}; {SCHEMA_VERSION} is needed.")
        if [image.id for image in run.images] != [image.id for image in runs[0].images]:
            raise InputError(f"The images of {run.name!r} are not those of {runs[0].name!r}, in the same order.")
        for image in run.images:
            _check_image(image)
    for kind in ("correlation", "iou"):
        for method, values in getattr(drift, kind, {}).items():
            if drift is not None and len(values) != len(drift.names) - 1:
                raise InputError(
                    f"drift.{kind}[{method!r}] has {len(values)} values; "
                    f"between {len(drift.names)} checkpoints there are {len(drift.names) - 1}."
                )


def _check_image(image: ReportImage) -> None:
    for method, grid in image.maps.items():
        if grid.ndim != 2 or grid.dtype != np.uint8 or 0 in grid.shape:
            raise InputError(
                f"The map of {method!r} for {image.id!r} is {grid.dtype} {list(grid.shape)}; uint8 [gh, gw] is needed."
            )
