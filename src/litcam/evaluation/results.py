"""From what was measured to what is read: the results of every method, as JSON, CSV and tables."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from litcam.errors import unwritable
from litcam.evaluation.measuring import Measurements
from litcam.evaluation.scored import score_all
from litcam.evaluation.scorers import Scorer
from litcam.evaluation.tables import COLUMNS, class_table, image_table, telling_images
from litcam.files import write_whole
from litcam.metrics.functional.bootstrap import INTERVAL, poisson_weights
from litcam.metrics.image_metric import ImageMetric
from litcam.report.contents import SCHEMA_VERSION
from litcam.report.numbers import lower_is_better

RESAMPLES = 1000  # of the times


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        results: what ``results.json`` holds; README, "results.json", describes it.
        images: a row per image and class explained: ``index``, ``id``, classes, probabilities, and
            ``<method>/<score>`` of every method.
        classes: the means of these over the images of each class.
        cost: by method ``ms_per_image``, its interval ``low`` to ``high``, and ``forwards``, how many forwards of the
            same images take as long.
        measurements: what all this was made from, with the maps.
    """

    results: dict[str, Any]
    images: pd.DataFrame
    classes: pd.DataFrame
    cost: dict[str, dict[str, float]]
    measurements: Measurements

    def maps(self, method: str) -> NDArray[np.float16]:
        """The maps of a method, of the rows of ``images``: [M, gh, gw], each scaled to [0, 1]."""
        name = f"{list(self.measurements.explainers).index(method)}.maps"
        return self.measurements.parts.collect(name)[name]

    def write(self, folder: str | Path) -> None:
        """Write ``results.json``, ``results.csv``, ``images.csv``, ``images.parquet``, ``classes.csv``, ``cost.json``.

        Raises:
            InputError: if the folder cannot be written.
        """
        contents: dict[str, str | bytes] = {
            "results.json": json.dumps(self.results, indent=2, allow_nan=False) + "\n",
            "cost.json": json.dumps(self.cost, indent=2) + "\n",
            "results.csv": _results_csv(self.results),
            "images.csv": self.images.to_csv(index=False),
            "images.parquet": self.images.to_parquet(index=False),
            "classes.csv": self.classes.to_csv(index=False),
        }
        try:
            for name, content in contents.items():
                write_whole(Path(folder) / name, content)
        except OSError as error:
            raise unwritable(folder, error) from error


def conclude(measurements: Measurements, class_names: Sequence[str]) -> Evaluation:
    """Results and tables of what was measured."""
    numbers = range(len(measurements.explainers))
    own = [f"{number}.{name}" for number in numbers for name in ("degenerate", "seconds")]
    measured = measurements.parts.collect(*COLUMNS, "hits", *own)
    images = image_table(measured, class_names)
    methods: dict[str, dict[str, dict[str, Any]]] = {}
    curves: dict[str, dict[str, Any]] = {}
    left_out: dict[str, dict[str, dict[str, int]]] = {}
    columns: dict[str, NDArray[np.float64]] = {}
    prefixes = _prefixes(measurements.scorers)
    found = score_all(measurements, measured["index"])
    for number, name in enumerate(measurements.explainers):
        degenerate = measured[f"{number}.degenerate"]
        methods[name] = {}
        columns[f"{name}/degenerate"] = degenerate
        for scorer in measurements.scorers:
            scored = found[name, scorer.name]
            if not scored.applies:
                continue
            prefix = prefixes[scorer.name]
            methods[name] |= {prefix + key: entry for key, entry in scored.entries().items()}
            left_out.setdefault(name, {})[scorer.name] = scored.left_out
            if curve := scored.curves():
                curves.setdefault(name, {})[scorer.name] = curve
            columns |= {f"{name}/{prefix}{key}": values for key, values in scored.of_images().items()}
        methods[name]["degenerate"] = {"value": int(degenerate.sum()), "num_images": len(degenerate)}
    images = pd.concat([images, pd.DataFrame(columns)], axis=1)
    hits = measured["hits"]
    described = {scorer.name for found in left_out.values() for scorer in measurements.scorers if scorer.name in found}
    results: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "split": measurements.split,
        "target": measurements.target,
        "num_images": len(hits),
        "accuracy": float(hits.mean()),
        "unknown_classes": asdict(measurements.datamodule.left_out_classes(measurements.split)),
        "protocols": {scorer.name: scorer.description for scorer in measurements.scorers if scorer.name in described},
        "lower_is_better": list(
            dict.fromkeys(
                score
                for scores in methods.values()
                for score in scores
                if score != "degenerate" and lower_is_better(score)
            )
        ),
        "controls": [name for name, explainer in measurements.explainers.items() if explainer.is_control],
        "methods": methods,
        "left_out": left_out,
        "curves": curves,
        "telling": telling_images(measurements, images),
    }
    seconds = {name: measured[f"{number}.seconds"] for number, name in enumerate(measurements.explainers)}
    return Evaluation(results, images, class_table(images), _cost(seconds), measurements)


def _prefixes(scorers: Sequence[Scorer]) -> dict[str, str]:
    """What the names of each metric's scores begin with: of several of a kind, the later ones have their own name."""
    prefixes: dict[str, str] = {}
    taken: set[tuple[type[ImageMetric], str]] = set()
    for scorer in scorers:
        kind = (type(scorer.metric), scorer.prefix)
        prefixes[scorer.name] = f"{scorer.name}/" if kind in taken else scorer.prefix
        taken.add(kind)
    return prefixes


def _cost(seconds_of: Mapping[str, NDArray[np.float64]]) -> dict[str, dict[str, float]]:
    """Time of the recorded forward and of each method's explanation, measured during the evaluation.

    The interval is that of the Poisson bootstrap over batches, the rows of the times of each method.
    """
    cost = {}
    for name, seconds in seconds_of.items():
        weights = poisson_weights(torch.arange(len(seconds)), RESAMPLES).numpy()
        forward, explanation, images, pairs = np.concatenate([seconds.sum(0, keepdims=True), weights @ seconds]).T
        with np.errstate(invalid="ignore"):  # a resample without a batch
            per_image = forward / images
            both = per_image + explanation / pairs
        low, high = np.nanquantile(1000 * both[1:], INTERVAL)
        cost[name] = {
            "ms_per_image": float(1000 * both[0]),
            "low": float(low),
            "high": float(high),
            "forwards": float(both[0] / per_image[0]),
        }
    return cost


def _results_csv(results: Mapping[str, Any]) -> str:
    """A row per method and score."""
    keys = ("value", "low", "high", "num_images", "metric")
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["method", "score", *keys])
    for method, scores in results["methods"].items():
        for score, entry in scores.items():
            writer.writerow([method, score, *(entry.get(key, "") for key in keys)])
    return file.getvalue()
