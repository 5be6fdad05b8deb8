"""The two figures of shortcut_study.py: what a cheating and a sound run look like, and which numbers part them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from shortcut_runs import Record

from litcam.data import DigitScenesDataModule
from litcam.heatmaps import overlay, upsample

COLOURS = {"sound": "tab:blue", "cheating": "tab:red"}
SHOWN: Mapping[tuple[str, str], str] = {  # source and statistic, its title in the figure of the study
    ("model", "accuracy"): "accuracy (lower)",
    ("model", "loss"): "loss (higher)",
    ("agcam", "alarm"): "alarm: agcam's pointing game and RFS",
    ("swap", "relative_foreground_sensitivity"): "RFS: object against background, swapped",
    ("swap", "accuracy_object"): "accuracy on the object alone",
    ("swap", "accuracy_background"): "accuracy on the background alone",
    ("mean", "relative_foreground_sensitivity"): "RFS, filled with the mean",
    ("agcam", "energy_lift"): "energy lift: agcam",
    ("evidence", "energy_lift"): "energy lift: evidence",
    ("legrad", "energy_lift"): "energy lift: legrad",
    ("generic_attention", "energy_lift"): "energy lift: generic_attention",
    ("rollout", "energy_lift"): "energy lift: rollout",
    ("agcam", "pointing_game"): "pointing game: agcam",
    ("agcam", "a_tsi_above_one"): "a_tsi above 1: agcam",
    ("agcam", "m_tsi_above_one"): "m_tsi above 1: agcam",
    ("agcam", "spearman_first"): "drift from epoch 0: agcam",
    ("agcam", "positional_profile"): "positional profile: agcam (no boxes)",
    ("agcam", "gini"): "Gini index: agcam (no boxes)",
    ("random", "energy_lift"): "control: energy lift of random",
    ("center", "energy_lift"): "control: energy lift of center",
}


def draw_study(results: pd.DataFrame, epoch: int) -> Figure:
    """AUROC with its interval of each statistic, a panel for each kind of cheating."""
    chosen = results[results["epoch"] == epoch].set_index(["cue", "strength", "source", "statistic"])
    arms = list(dict.fromkeys((cue, strength) for cue, strength, *_ in chosen.index))
    figure = Figure(figsize=(3.4 + 1.9 * len(arms), 0.27 * len(SHOWN) + 1.1), layout="constrained")
    panels: Sequence[Axes] = np.atleast_1d(figure.subplots(1, len(arms), sharey=True))
    for axes, arm in zip(panels, arms, strict=True):
        axes.axvline(0.5, color="0.75", lw=0.8)
        for row, (source, statistic) in enumerate(SHOWN):
            numbers = chosen.loc[(*arm, source, statistic)]
            color = "0.45" if source in ("model", "random", "center") else "tab:blue"
            axes.plot([numbers["auroc_low"], numbers["auroc_high"]], [row, row], color=color, lw=1.5, alpha=0.6)
            axes.plot([numbers["auroc"]], [row], "o", color=color, ms=4)
        cue, strength = arm
        agreement = "always" if strength == 1 else f"in {strength:.0%}"
        axes.set_title(
            f"{cue}: {agreement} the class\n{numbers['of_cheating']:.0f} cheating, "
            f"{numbers['of_sound']:.0f} sound runs",
            fontsize=9,
        )
        axes.set(xlim=(-0.04, 1.04), xlabel="AUROC")
        axes.grid(axis="x", color="0.93")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(SHOWN)), list(SHOWN.values()), fontsize=8)
    panels[0].invert_yaxis()
    figure.suptitle(
        f"Which number gives a cheating run away after epoch {epoch}? 1 always, 0.5 no better than chance", fontsize=10
    )
    return figure


def draw_runs(paths: Mapping[str, Path], statistics: pd.DataFrame, explainer: str, images: int = 2) -> Figure:
    """A sound and a cheating run: maps of validation images over the epochs, and the numbers below.

    Args:
        paths: of the files of the runs, by their kind.
        statistics: of all runs, by name and epoch.
        explainer: whose maps are shown.
        images: of each run.
    """
    records = {kind: Record.read(path) for kind, path in paths.items()}
    columns = len(records["sound"].epochs)
    figure = Figure(figsize=(1.35 * (columns + 1), 1.35 * images * len(records) + 2.9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[1.35 * images * len(records), 2.7])
    grid = above.subplots(images * len(records), columns + 1, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for number, (kind, record) in enumerate(records.items()):
        _draw_maps(grid[number * images : (number + 1) * images], kind, record, explainer)
    for column, title in enumerate(["scene", "before", *(f"epoch {epoch}" for epoch in range(1, columns))]):
        grid[0, column].set_title(title, fontsize=9)
    wanted = {
        "accuracy": ("model", "accuracy"),
        "pointing game": (explainer, "pointing_game"),
        "on the object alone": ("swap", "accuracy_object"),
        "on the background alone": ("swap", "accuracy_background"),
    }
    for axes, (title, column) in zip(below.subplots(1, len(wanted)), wanted.items(), strict=True):
        for kind, record in records.items():
            values = statistics.loc[record.run.name][column]
            axes.plot(values.index, values, color=COLOURS[kind], marker="o", ms=3, label=kind)
        axes.set_title(title, fontsize=9)
        axes.set(xlabel="epoch", xticks=range(columns), ylim=(0, 1.03))
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    below.axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _draw_maps(grid: Any, kind: str, record: Record, explainer: str) -> None:
    """A row for each of the first images that the run has right at its end."""
    labels, last = record.labels, record.epochs[-1]
    right = np.flatnonzero(last.logits.argmax(1) == labels)[: len(grid)]
    data = DigitScenesDataModule(**record.run.scenes)
    data.use_data_config({**data.data_config, "input_size": (3, *record.regions.shape[1:])})
    for row, place in zip(grid, right.tolist(), strict=True):
        scene: Any = data.dataset("val")[place]
        pixels = scene["image"].permute(1, 2, 0).numpy()
        pictures = [pixels]
        for epoch in record.epochs:
            small = torch.from_numpy(epoch.maps[explainer][place : place + 1])
            pictures.append(overlay(pixels, upsample(small, (pixels.shape[0], pixels.shape[1]))[0].numpy()))
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        for x0, y0, x1, y1 in scene["boxes"].tolist():
            row[0].add_patch(Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, color="lime", lw=1))
        row[0].set_ylabel(f"{kind} run", fontsize=9, color=COLOURS[kind])
