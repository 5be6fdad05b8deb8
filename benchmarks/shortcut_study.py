"""Which numbers give a cheating model away, how surely, and how early: the study behind ShortcutAlarm.

python benchmarks/shortcut_study.py --jobs 2      # makes the runs that are missing (40 to 60 seconds each), then this

A run fine-tunes the packaged model on DigitScenes with a cue. In cheating runs the cue's class is the label in all (or
90 %) of the images; in sound runs the same cues are there, but say nothing. What a run is follows from what it does and
not from how it was made: R is its accuracy minus that with the cues redrawn, after the last epoch; from 0.10 on it
cheats, up to 0.02 it is sound, and what lies between counts as neither.

AUROC: the chance that a cheating run has the more suspicious number than a sound one of the same cue, after the same
epoch; intervals of 95 % from the bootstrap over runs. Thresholds: from the runs of the calibration alone, at most 5 %
false alarms over all epochs of a run, frozen before the others are looked at (litcam.callbacks.calibration).

Writes benchmarks/shortcut_study.csv, benchmarks/shortcut_runs.csv, docs/shortcut_study.png and docs/shortcut_runs.png;
with --write_calibration also the calibration that ships with litcam.

The map statistic of the alarm, the pointing game, was chosen after a look at the runs whose cues always agree; those
whose cues agree in 90 % had not been looked at.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from shortcut_figures import draw_runs, draw_study
from shortcut_runs import FILLS, MAPS, SOUND, Epoch, Record, Run, make_missing, plan
from torch import Tensor
from torch.nn import functional as F

from litcam.callbacks.calibration import calibrate
from litcam.callbacks.shortcut_statistics import (
    FOREGROUND_SENSITIVITY,
    POINTING,
    PROFILE,
    Watched,
    shortcut_statistics,
)
from litcam.explainers import check_explainer
from litcam.heatmaps import is_degenerate, scale, upsample
from litcam.metrics.functional.checks import has_both
from litcam.metrics.functional.focus import focus
from litcam.metrics.functional.localization import localization
from litcam.metrics.functional.reliance import RELIANCE_COLUMNS, relative_foreground_sensitivity
from litcam.metrics.functional.similarity import gini, similarity

Column = tuple[str, str]  # source and name of a statistic
ROOT = Path(__file__).resolve().parent.parent
CHEATING, SOUND_UP_TO = 0.10, 0.02
RESAMPLES = 2000
BY_EPOCH = 3
EXAMPLES = {"sound": "test_patch_0.1_02", "cheating": "test_patch_1.0_104"}  # runs of the figure
OF_MAPS: Mapping[str, int] = {  # statistic: 1 if high values are suspicious, -1 if low ones are
    POINTING: -1,
    "energy_lift": -1,
    "energy_inside": -1,
    "a_tsi_above_one": 1,
    "m_tsi_above_one": 1,
    PROFILE: 1,
    "gini": 1,
    "spearman_first": -1,
}
OF_RELIANCE: Mapping[str, int] = {"accuracy_object": -1, "accuracy_background": 1, FOREGROUND_SENSITIVITY: -1}
OF_MODEL: Mapping[str, int] = {"accuracy": -1, "loss": 1}
ALARM = "alarm"  # pointing game and relative foreground sensitivity together, as ShortcutAlarm watches them


def statistics_of(record: Record) -> list[dict[Column, float]]:
    """The statistics of every epoch, by source (a map, a fill of the reliance, the model) and name."""
    labels, regions = torch.from_numpy(record.labels), torch.from_numpy(record.regions)
    return [_statistics(epoch, record.epochs[0], labels, regions) for epoch in record.epochs]


def _statistics(epoch: Epoch, first: Epoch, labels: Tensor, regions: Tensor) -> dict[Column, float]:
    logits = torch.from_numpy(epoch.logits)
    correct = logits.argmax(1) == labels
    found = {
        ("model", "accuracy"): float(correct.double().mean()),
        ("model", "loss"): float(F.cross_entropy(logits, labels)),
    }
    for fill, rows in epoch.reliance.items():
        means = dict(zip(RELIANCE_COLUMNS, torch.from_numpy(rows).double().nanmean(0), strict=True))
        of_object, of_background = means["accuracy_object"], means["accuracy_background"]
        found |= {(fill, "accuracy_object"): float(of_object), (fill, "accuracy_background"): float(of_background)}
        found[fill, FOREGROUND_SENSITIVITY] = float(relative_foreground_sensitivity(of_object, of_background))
    for name, values in epoch.maps.items():
        maps = torch.from_numpy(values)
        found |= {(name, statistic): value for statistic, value in _of_maps(maps, regions).items()}
        scaled, before = scale(maps), scale(torch.from_numpy(first.maps[name]))
        found[name, "spearman_first"] = float(similarity("spearman", scaled, before).nanmean())
        watched = Watched(labels, correct, scaled, None, None, None)
        found[name, PROFILE] = shortcut_statistics(watched)[PROFILE]
    return found


def _of_maps(maps: Tensor, regions: Tensor) -> dict[str, float]:
    """Means over images, of what speaks for the class, c⁺, as ShortcutAlarm has them."""
    positive = maps.clamp(min=0)
    full = upsample(positive, (regions.shape[1], regions.shape[2]))
    kept = ~is_degenerate(full) & has_both(regions)
    full, regions = full[kept], regions[kept]
    places, indices = localization(full, regions, prediction="mask"), focus(full, regions)
    return {
        **{name: float(places[name].mean()) for name in ("energy_inside", "pointing_game")},
        "energy_lift": float(indices["energy_lift"].mean()),
        **{f"{name}_above_one": float((indices[name] > 1).double().mean()) for name in ("a_tsi", "m_tsi")},
        "gini": float(gini(scale(positive)).nanmean()),
    }


def reliance_on_the_cue(record: Record) -> list[float]:
    """R of every epoch: the accuracy less that with the cues redrawn."""
    right = [
        [(logits.argmax(1) == record.labels).mean() for logits in (epoch.logits, epoch.redrawn_logits)]
        for epoch in record.epochs
    ]
    return [float(whole - redrawn) for whole, redrawn in right]


def auroc(cheating: NDArray[np.float64], sound: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of pairs in which the cheating run has the larger number, ties half: of [..., m] and [..., n]."""
    larger = cheating[..., :, None] > sound[..., None, :]
    equal = cheating[..., :, None] == sound[..., None, :]
    return np.asarray((larger + 0.5 * equal).mean((-2, -1)))


def with_interval(cheating: NDArray[np.float64], sound: NDArray[np.float64]) -> tuple[float, float, float]:
    """The AUROC and its 95 % interval, of the bootstrap over runs."""
    rng = np.random.default_rng(0)
    drawn = [runs[rng.integers(len(runs), size=(RESAMPLES, len(runs)))] for runs in (cheating, sound)]
    low, high = np.quantile(auroc(drawn[0], drawn[1]), (0.025, 0.975))
    return float(auroc(cheating, sound)), float(low), float(high)


def _read(path: Path) -> tuple[Run, list[dict[Column, float]], list[float]]:
    record = Record.read(path)
    return record.run, statistics_of(record), reliance_on_the_cue(record)


def read_all(paths: Sequence[Path], jobs: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs, by name, and their statistics: a row per run and epoch, a column per source and name of a statistic."""
    runs, rows = {}, {}
    with ProcessPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        read = list(track(pool.map(_read, paths), "reading", len(paths), console=Console(stderr=True)))
    for run, found, of_cue in read:
        runs[run.name] = {
            **{name: getattr(run, name) for name in ("arm", "cue", "strength", "seed")},
            **{name: run.scenes[name] for name in ("contrast", "clutter", "texture")},
            **{f"accuracy_{number}": epoch["model", "accuracy"] for number, epoch in enumerate(found)},
            **{f"R_{number}": value for number, value in enumerate(of_cue)},
            "kind": "cheating" if of_cue[-1] >= CHEATING else "sound" if of_cue[-1] <= SOUND_UP_TO else "neither",
        }
        rows |= {(run.name, number): epoch for number, epoch in enumerate(found)}
    statistics = pd.DataFrame.from_dict(rows, orient="index")
    statistics.columns = pd.MultiIndex.from_tuples(statistics.columns)
    return pd.DataFrame.from_dict(runs, orient="index"), statistics


def levels_of(runs: pd.DataFrame, statistics: pd.DataFrame) -> pd.DataFrame:
    """How far every statistic is on its way to its frozen threshold, which is at 1; and those of ``alarm``."""
    single: dict[Column, int] = {
        **{("model", name): sign for name, sign in OF_MODEL.items()},
        **{(fill, name): sign for fill in FILLS for name, sign in OF_RELIANCE.items()},
        **{(name, statistic): sign for name in MAPS for statistic, sign in OF_MAPS.items()},
    }
    together = {(name, ALARM): {(name, POINTING): -1, ("swap", FOREGROUND_SENSITIVITY): -1} for name in MAPS}
    watched: dict[Column, dict[Column, int]] = {column: {column: sign} for column, sign in single.items()} | together
    calibration = runs.index[(runs["arm"] == "calibration") & (runs["kind"] == "sound")]
    levels = {}
    for column, suspicious in watched.items():
        names = {"/".join(part): sign for part, sign in suspicious.items()}
        parts = statistics[list(suspicious)].set_axis(list(names), axis=1)
        known = parts.assign(accuracy=statistics["model", "accuracy"])
        sound = [known.loc[name].loc[1:].to_dict("records") for name in calibration]
        reached = calibrate(sound, names).levels(dict(parts.items()))
        levels[column] = pd.DataFrame(reached).max(axis=1)
    return pd.DataFrame(levels)


def analyse(runs: pd.DataFrame, levels: pd.DataFrame) -> pd.DataFrame:
    """AUROC by cue, strength, statistic and epoch; and up to that epoch the detections and false alarms."""
    test = runs[runs["arm"] == "test"]
    rows = []
    arms = test[test["strength"] != SOUND].groupby(["cue", "strength"], sort=False).groups
    for cue, strength in track(list(arms), "analysing", console=Console(stderr=True)):
        of_cue = test[test["cue"] == cue]
        cheating = of_cue.index[(of_cue["strength"] == strength) & (of_cue["kind"] == "cheating")]
        sound = of_cue.index[(of_cue["strength"] == SOUND) & (of_cue["kind"] == "sound")]
        if min(len(cheating), len(sound)) < 2:
            continue
        for source, statistic in levels:
            series = levels[source, statistic].unstack()  # [runs, epochs]
            one, other = series.loc[cheating].to_numpy(), series.loc[sound].to_numpy()
            for epoch in series:
                value, low, high = with_interval(one[:, epoch], other[:, epoch])
                detected, false = ((part[:, 1 : epoch + 1] >= 1).any(1).sum() for part in (one, other))
                who = {"cue": cue, "strength": strength, "source": source, "statistic": statistic, "epoch": epoch}
                scores = {"auroc": value, "auroc_low": low, "auroc_high": high}
                counts = {"detected": detected, "of_cheating": len(cheating)}
                rows.append({**who, **scores, **counts, "false_alarms": false, "of_sound": len(sound)})
    return pd.DataFrame(rows)


def write_calibration(runs: pd.DataFrame, statistics: pd.DataFrame, path: Path) -> None:
    """The table of sound runs that ShortcutAlarm reads, in the columns of a run's history.csv."""
    names = runs.index[(runs["arm"] == "calibration") & (runs["kind"] == "sound")]
    columns = {}
    for name in MAPS:
        if not check_explainer(name).is_control:
            prefix = f"val/{name}/alarm/"
            columns[f"{prefix}accuracy"] = statistics["model", "accuracy"]
            columns |= {prefix + statistic: statistics[name, statistic] for statistic in (POINTING, PROFILE)}
            columns[prefix + FOREGROUND_SENSITIVITY] = statistics["swap", FOREGROUND_SENSITIVITY]
    table = pd.DataFrame(columns).loc[names]
    table = table[table.index.get_level_values(1) > 0].rename_axis(["run", "epoch"])
    table.round(4).to_csv(path)


def show(results: pd.DataFrame, epoch: int) -> Table:
    """AUROC, detections and false alarms after an epoch, a column per kind of cheating."""
    table = Table(title=f"after epoch {epoch}: AUROC (95 % interval), detected, false alarms", title_justify="left")
    table.add_column("")
    arms = list(dict.fromkeys(zip(results["cue"], results["strength"], strict=True)))
    for cue, strength in arms:
        table.add_column(f"{cue} {strength:g}")
    chosen = results[results["epoch"] == epoch].set_index(["source", "statistic", "cue", "strength"])
    for source, statistic in dict.fromkeys(chosen.index.droplevel([2, 3])):
        cells = []
        for arm in arms:
            row = chosen.loc[(source, statistic, *arm)]
            cells.append(
                f"{row['auroc']:.2f} ({row['auroc_low']:.2f}-{row['auroc_high']:.2f}) "
                f"{row['detected']:.0f}/{row['of_cheating']:.0f} {row['false_alarms']:.0f}/{row['of_sound']:.0f}"
            )
        table.add_row(f"{source}: {statistic}", *cells)
    return table


def main() -> None:
    """Make what is missing, analyse, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "shortcut_study", help="of the runs' files")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each arm")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--ready", action="store_true", help="make no run: take those that are there")
    parser.add_argument("--write_calibration", action="store_true", help="also write litcam's own calibration")
    options = parser.parse_args()
    planned = plan(options.seeds)
    if not options.ready:
        make_missing(planned, options.folder, options.jobs)
    paths = [options.folder / f"{run.name}.npz" for run in planned]
    runs, statistics = read_all([path for path in paths if path.exists()], options.jobs)
    if options.write_calibration:
        write_calibration(runs, statistics, ROOT / "src" / "litcam" / "callbacks" / "sound_runs.csv")
    results = analyse(runs, levels_of(runs, statistics))
    runs.rename_axis("run").round(4).to_csv(ROOT / "benchmarks" / "shortcut_runs.csv")
    results.round(3).to_csv(ROOT / "benchmarks" / "shortcut_study.csv", index=False)
    examples = {kind: options.folder / f"{name}.npz" for kind, name in EXAMPLES.items()}
    draw_runs(examples, statistics, "agcam").savefig(ROOT / "docs" / "shortcut_runs.png", dpi=90)
    draw_study(results, BY_EPOCH).savefig(ROOT / "docs" / "shortcut_study.png", dpi=90)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(runs.groupby(["arm", "cue", "strength", "kind"], sort=False).size().to_string())
    console.print(show(results, BY_EPOCH))


if __name__ == "__main__":
    main()
