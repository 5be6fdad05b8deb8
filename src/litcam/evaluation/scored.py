"""Scored: what one metric found of one method, on all images together and on each alone."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from litcam.evaluation.measuring import Measurements
from litcam.evaluation.scorers import Scorer
from litcam.metrics import Perturbation
from litcam.metrics.image_metric import Measured

LEFT_OUT = ("degenerate", "without_region", "wrong_predictions")


class Scored:
    """What one metric found of one method."""

    def __init__(self, measurements: Measurements, scorer: Scorer, prefix: str, indices: NDArray[np.int64]) -> None:
        metric = deepcopy(scorer.metric).cpu()
        rows, places, left_out, before = [], [], np.zeros(len(LEFT_OUT), dtype=np.int64), 0
        for part in measurements.parts:
            count = len(part["index"])
            if f"{prefix}rows" in part:
                of_part = torch.from_numpy(part[f"{prefix}rows"].astype(np.float64))
                where = before + part[f"{prefix}places"]
                # Pairs of an image and its classes are drawn together, and an image alike for all methods.
                keys = torch.from_numpy(indices[where])
                metric.add(Measured(of_part, torch.ones(len(where), dtype=torch.bool), keys))
                rows.append(metric.scores(of_part, torch.ones(len(where), dtype=torch.float64)))
                places.append(where)
                left_out += part[f"{prefix}left_out"].sum(0)
            before += count
        self.scorer = scorer
        self.size = before
        self.num_images = int(metric.num_images)
        self.applies = bool(self.num_images or left_out.any())
        self.left_out = dict(zip(LEFT_OUT, left_out.tolist(), strict=True))
        self._rows, self._places = rows, places
        computed = metric.summarize() if self.num_images else {}
        # The best threshold of a threshold-free score is no score.
        self._computed = {name: value for name, value in computed.items() if not name.startswith(("num_", "threshold"))}
        self._scores = [name for name in self._computed if not name.endswith(("_low", "_high"))]
        self._ends = ("low", "high") if metric.resamples else ()

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
