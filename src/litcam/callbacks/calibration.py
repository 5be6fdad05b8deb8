"""What the statistics of sound runs look like, and from where on another run is not one of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from litcam.errors import InputError

SHIPPED = "shipped"
Epochs = Sequence[Mapping[str, float]]  # the statistics and the accuracy of each validation of a run, by name


@dataclass(frozen=True)
class Calibration:
    """Limits such that a further run of the same kind as some sound ones rarely crosses any of them.

    Attributes:
        typical: the mean of each statistic over the validations of the sound runs.
        limits: from where on, away from the typical value on its suspicious side, a statistic is one that calls.
        num_runs: how many sound runs.
        false_alarms: the chance that a further sound run crosses a limit in any of its validations.
    """

    typical: Mapping[str, float]
    limits: Mapping[str, float]
    num_runs: int
    false_alarms: float

    def levels(self, statistics: Mapping[str, float]) -> dict[str, float]:
        """How far each statistic is on the way from its typical value, 0, to its limit, 1; NaN stays NaN."""
        return {
            name: (statistics[name] - self.typical[name]) / (limit - self.typical[name])
            for name, limit in self.limits.items()
        }


def calibrate(
    runs: Sequence[Epochs], suspicious: Mapping[str, int], false_alarms: float = 0.05, min_accuracy: float = 0.5
) -> Calibration:
    """The limits of statistics that are watched together, by conformal prediction (Vovk et al., 2005), leaving one out.

    A statistic's deviation is its distance from the mean towards the suspicious side, in standard deviations over all
    validations; a run's score the largest deviation of any statistic in any of its validations. The limits are where
    the deviation equals the k-th smallest score of the n runs, k = ⌈(n + 1)·(1 − false_alarms)⌉: of a further run of
    the same kind and length the score exceeds it with a chance of at most 1 − k/(n + 1).

    A further run has no share in mean and deviation; so each run's score is by those of the other runs, else the chance
    would be 0.066 for a promised 0.048 (20 runs, two statistics). Not below half the standard deviation of all runs,
    lest a single run that differs puts the limits out of reach.

    Args:
        runs: sound ones.
        suspicious: which statistics: for each by its name 1 if high values are suspicious, -1 if low ones are.
        false_alarms: the chance asked for; the calibration's own may be smaller.
        min_accuracy: validations below it say nothing and are left out.

    Raises:
        InputError: if the runs are too few for the chance asked for, or lack a statistic.
    """
    watched = [[epoch for epoch in run if epoch["accuracy"] >= min_accuracy] for run in runs]
    watched = [run for run in watched if run]
    count = len(watched)
    if not 0 < false_alarms < 1:
        raise InputError(f"false_alarms is {false_alarms}; it has to lie between 0 and 1.")
    rank = math.ceil((count + 1) * (1 - false_alarms) - 1e-9)  # the rounding of, say, 1 - 0.05
    if rank > count:
        raise InputError(
            f"false_alarms is {false_alarms}, but {count} sound runs whose accuracy reaches {min_accuracy} can promise "
            f"no less than {1 / (count + 1):.3f}: raise it, or calibrate with more runs (19 for 0.05)."
        )
    values = [np.array([[epoch.get(name, np.nan) for name in suspicious] for epoch in run]) for run in watched]
    if not all(np.isfinite(run).all() for run in values):  # each [validations, S]
        raise InputError("A statistic of a sound run is not a number; calibrate with runs that have all of them.")
    signs = np.array(list(suspicious.values()))
    typical, spread = _mean_and_spread(values)
    scores: list[float] = []
    for number, run in enumerate(values):
        mean, of_others = _mean_and_spread([*values[:number], *values[number + 1 :]] or values)
        scores.append(float((signs * (run - mean) / np.maximum(of_others, spread / 2)).max()))
    limit = max(sorted(scores)[rank - 1], 1e-6)
    limits = typical + signs * limit * spread
    return Calibration(
        dict(zip(suspicious, typical.tolist(), strict=True)),
        dict(zip(suspicious, limits.tolist(), strict=True)),
        count,
        1 - rank / (count + 1),
    )


def _mean_and_spread(runs: Sequence[NDArray[np.float64]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each of S statistics over the validations [m, S] of all runs."""
    values = np.concatenate(runs)
    spread = values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return values.mean(0), np.maximum(spread, 1e-6)  # a statistic that never changes calls as soon as it does


def read_sound_runs(sources: str | Sequence[str], prefix: str, names: Sequence[str]) -> list[Epochs]:
    """The statistics of sound runs, each validation after the first epoch of training on.

    Args:
        sources: ``"shipped"``, for litcam's own; or run folders, whose ``history.csv`` is read, and tables like it that
            hold several runs, told apart by a column ``run``.
        prefix: of the columns, ``val/<explainer>/alarm/``.
        names: of the statistics.

    Raises:
        InputError: if a file is missing, is no such table, or lacks a column.
    """
    if sources == SHIPPED:
        with as_file(files("litcam.callbacks") / "sound_runs.csv") as path:
            return _read(path, prefix, names, "The calibration shipped with litcam")
    paths = [Path(source) for source in ([sources] if isinstance(sources, str) else sources)]
    tables = [path / "history.csv" if path.is_dir() else path for path in paths]
    return [run for path in tables for run in _read(path, prefix, names, str(path))]


def _read(path: Path, prefix: str, names: Sequence[str], title: str) -> list[Epochs]:
    columns = [prefix + name for name in ("accuracy", *names)]
    try:
        table = pd.read_csv(path)
        table = table.astype({column: float for column in columns if column in table})
    except (OSError, ValueError) as error:
        raise InputError(
            f"{title} cannot be read as the history of sound runs ({error}): calibration takes folders of runs that "
            "ShortcutAlarm has watched, or tables like their history.csv."
        ) from error
    missing = [column for column in columns if column not in table]
    if missing:
        known = sorted(
            column.split("/")[1] + (" (masks)" if column.endswith("mask_accuracy") else "")
            for column in map(str, table)
            if column.endswith(("/alarm/accuracy", "/alarm/mask_accuracy"))
        )
        raise InputError(
            f"{title} has no {', '.join(missing)}; it knows {', '.join(known) or 'nothing of ShortcutAlarm'}. Take one "
            "of these explainers, or calibrate with sound runs of yours that were watched with calibration: null."
        )
    table = table.dropna(subset=columns)
    if "step" in table:
        table = table[table["step"] > 0]  # not what the model was before the training
    groups = [group for _, group in table.groupby("run", sort=False)] if "run" in table else [table]
    return [
        [dict(zip(("accuracy", *names), row, strict=True)) for row in group[columns].to_numpy().tolist()]
        for group in groups
    ]
