"""From evaluations to a report: which images are shown, with their maps, scores and boxes."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from litcam.data import boxes_of, collate
from litcam.errors import InputError, unwritable
from litcam.evaluation.results import Evaluation
from litcam.files import write_whole
from litcam.metrics.functional.correlation import pearson
from litcam.report import Drift, ReportImage, ReportRun
from litcam.report import write_report as write_page


def write_report(
    folder: str | Path, evaluations: Mapping[str, Evaluation], num_images: int = 200, seed: int = 0
) -> Path:
    """Write ``report.html``, and ``drift.csv`` where there are several checkpoints.

    Args:
        folder: where to.
        evaluations: of the same images, by the name of the checkpoint, in their order.
        num_images: in the gallery: the telling ones of each evaluation, then random ones.
        seed: of those.

    Returns:
        The path of the page.

    Raises:
        InputError: if the evaluations are of different images, or the folder cannot be written.
    """
    names, found = list(evaluations), list(evaluations.values())
    if any(other.images["id"].tolist() != found[0].images["id"].tolist() for other in found):
        raise InputError("The evaluations are of different images; name the data to compare on: --data.class_path ….")
    moved = drift(names, found) if len(found) > 1 else None
    rows = shown_rows(found, num_images, seed)
    runs = [report_run(name, evaluation, rows) for name, evaluation in evaluations.items()]
    path = Path(folder) / "report.html"
    write_page(path, runs, moved)
    if moved is not None:
        try:
            write_whole(path.parent / "drift.csv", _drift_csv(moved))
        except OSError as error:
            raise unwritable(folder, error) from error
    return path


def shown_rows(evaluations: Sequence[Evaluation], most: int, seed: int = 0) -> list[int]:
    """The rows of the table of images that a report shows: the telling ones of every evaluation, then random ones."""
    telling = [
        row for evaluation in evaluations for kind in evaluation.results["telling"].values() for row in kind["rows"]
    ]
    others = np.random.default_rng(seed).permutation(len(evaluations[0].images)).tolist()
    return sorted(list(dict.fromkeys([*telling, *others]))[:most])


def report_run(name: str, evaluation: Evaluation, rows: Sequence[int]) -> ReportRun:
    """What a report shows of one checkpoint."""
    methods = list(evaluation.measurements.explainers)
    maps = {method: evaluation.maps(method)[list(rows)] for method in methods}
    kinds = {row: kind for kind, found in evaluation.results["telling"].items() for row in found["rows"]}
    dataset = evaluation.measurements.datamodule.dataset(evaluation.measurements.split)
    images = []
    for place, row in enumerate(rows):
        entry = {str(key): value for key, value in evaluation.images.iloc[row].items()}
        sample = dataset[int(entry["index"])]
        batch = collate([sample])
        label = None if batch["label"].ndim == 1 else int(entry["target"])
        boxes = boxes_of(batch, 0, label) if "boxes" in batch else torch.zeros(0, 4)  # type: ignore[arg-type]  # a Batch
        images.append(
            ReportImage(
                index=int(entry["index"]),
                id=str(entry["id"]),
                label=entry["label_name"],
                target=entry["target_name"],
                predicted=entry["predicted_name"],
                probability=float(entry["probability"]),
                correct=bool(entry["correct"]),
                thumbnail=_jpeg(sample["image"].permute(1, 2, 0).numpy()),
                size=(sample["image"].shape[-2], sample["image"].shape[-1]),
                boxes=[(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist()],
                maps={method: _bytes(maps[method][place]) for method in methods},
                scores={method: _scores(entry, method) for method in methods},
                kinds=(kinds[row],) if row in kinds else (),
            )
        )
    return ReportRun(name, {**evaluation.results, "cost": evaluation.cost}, images)


def drift(names: Sequence[str], evaluations: Sequence[Evaluation]) -> Drift:
    """How the maps of the same images moved from each checkpoint to the next, on the grid of the patches.

    ``correlation``: Pearson's, mean over images whose maps are not constant. ``iou``: of the patches where the scaled
    maps exceed 0.5, mean over images where there are any.
    """
    correlation: dict[str, list[float]] = {}
    iou: dict[str, list[float]] = {}
    for method in evaluations[0].measurements.explainers:
        maps = [torch.from_numpy(evaluation.maps(method)).float() for evaluation in evaluations]
        correlation[method] = [float(pearson(one, other).nanmean()) for one, other in pairwise(maps)]
        iou[method] = []
        for one, other in pairwise(maps):
            both, either = ((one > 0.5) & (other > 0.5)).sum((1, 2)), ((one > 0.5) | (other > 0.5)).sum((1, 2))
            iou[method].append(float((both[either > 0] / either[either > 0]).mean()))
    return Drift(names, correlation, iou)


def _drift_csv(moved: Drift) -> str:
    """A row per method and step from one checkpoint to the next."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["method", "from", "to", "correlation", "iou"])
    for method, correlations in moved.correlation.items():
        steps = zip(moved.names, moved.names[1:], correlations, moved.iou[method], strict=False)
        writer.writerows([method, *step] for step in steps)
    return file.getvalue()


def _scores(entry: dict[str, Any], method: str) -> dict[str, float | None]:
    """The scores of one image and method; None for what was left out."""
    values = {key.removeprefix(f"{method}/"): value for key, value in entry.items() if key.startswith(f"{method}/")}
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}


def _bytes(heatmap: NDArray[np.float16]) -> NDArray[np.uint8]:
    """A map in [0, 1] in 256 steps; zeros for one with NaN."""
    values = heatmap.astype(np.float64)
    return (255 * values).round().astype(np.uint8) if np.isfinite(values).all() else np.zeros(values.shape, np.uint8)


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
