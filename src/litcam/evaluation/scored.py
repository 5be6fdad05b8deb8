"""Scored: what one metric found of one method, on all images together and on each alone."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from litcam.evaluation.measuring import Measurements
from litcam.evaluation.parts import Arrays
from litcam.evaluation.scorers import Scorer
from litcam.metrics import Perturbation
from litcam.metrics.image_metric import Measured

LEFT_OUT = ("degenerate", "without_region", "wrong_predictions")


def score_all(measurements: Measurements, indices: NDArray[np.int64]) -> dict[tuple[str, str], "Scored"]:
    """What every metric found of every method, by the names of both; every part is read once.

    Args:
        measurements: of all of them.
        indices: of the image of each pair, in the dataset.
    """
    found = {(name, scorer.name): _Sums(scorer) for name in measurements.explainers for scorer in measurements.scorers}
    before = 0
    for part in measurements.parts:
        for number, name in enumerate(measurements.explainers):
            for place, scorer in enumerate(measurements.scorers):
                if f"{number}.{place}.rows" in part:
                    found[name, scorer.name].add(part, f"{number}.{place}.", before, indices)
        before += len(part["index"])
    return {key: Scored(sums, len(indices)) for key, sums in found.items()}


class _Sums:
    """What one metric has seen of one method so far."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.metric = deepcopy(scorer.metric).cpu()
        self.left_out = np.zeros(len(LEFT_OUT), dtype=np.int64)
        self.rows: list[dict[str, Tensor]] = []
        self.places: list[NDArray[np.int64]] = []

    def add(self, part: Arrays, prefix: str, before: int, indices: NDArray[np.int64]) -> None:
        """Take in a part, before which there were so many pairs."""
        rows = torch.from_numpy(part[f"{prefix}rows"].astype(np.float64))
        places = before + part[f"{prefix}places"]
        # Pairs of an image and its classes are drawn together, and an image alike for all methods.
        keys = torch.from_numpy(indices[places])
        self.metric.add(Measured(rows, torch.ones(len(places), dtype=torch.bool), keys))
        self.rows.append(self.metric.scores(rows, torch.ones(len(places), dtype=torch.float64)))
        self.places.append(places)
        self.left_out += part[f"{prefix}left_out"].sum(0)


class Scored:
    """What one metric found of one method, on so many pairs."""

    def __init__(self, sums: _Sums, size: int) -> None:
        self.scorer = sums.scorer
        self.size = size
        self.num_images = int(sums.metric.num_images)
        self.applies = bool(self.num_images or sums.left_out.any())
        self.left_out = dict(zip(LEFT_OUT, sums.left_out.tolist(), strict=True))
        self._rows, self._places = sums.rows, sums.places
        computed = sums.metric.summarize() if self.num_images else {}
        # The best threshold of a threshold-free score is no score.
        self._computed = {name: value for name, value in computed.items() if not name.startswith(("num_", "threshold"))}
        self._scores = [name for name in self._computed if not name.endswith(("_low", "_high"))]
        self._ends = ("low", "high") if sums.metric.resamples else ()

    def entries(self) -> dict[str, dict[str, Any]]:
        """Value, interval, number of images and metric of every score."""
        entries: dict[str, dict[str, Any]] = {}
        for name in self._scalars:
            ends = {end: float(self._computed[f"{name}_{end}"]) for end in self._ends}
            value = {"value": float(self._computed[name]), **ends}
            entries[name] = {**value, "num_images": self.num_images, "metric": self.scorer.name}
        return entries

    def curves(self) -> dict[str, Any]:
        """The curves of a perturbation, with their intervals."""
        if not isinstance(self.scorer.metric, Perturbation) or not self.num_images:
            return {}
        protocol = self.scorer.metric.protocol
        curves = {}
        for curve in protocol.curves:
            values = {end: self._computed[f"{curve.name}_curve_{end}"].tolist() for end in self._ends}
            curves[curve.name] = {"value": self._computed[f"{curve.name}_curve"].tolist(), **values}
        return {"points": [100 * point / protocol.steps for point in protocol.points], "curves": curves}

    def of_images(self) -> dict[str, NDArray[np.float64]]:
        """The scores of every pair alone, NaN where it was left out."""
        columns = {}
        for name in self._scalars:
            values = np.full(self.size, np.nan)
            for rows, places in zip(self._rows, self._places, strict=True):
                values[places] = rows[name].numpy()
            columns[name] = values
        return columns

    @property
    def _scalars(self) -> list[str]:
        """The names of the scores that are numbers."""
        return [name for name in self._scores if self._computed[name].ndim == 0 and self._computed[name].isfinite()]
