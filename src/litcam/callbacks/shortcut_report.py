"""What ShortcutAlarm gives to people: its words, the table of the images and the figure of the levels."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from litcam.callbacks.calibration import Calibration
from litcam.callbacks.shortcut_statistics import (
    FOREGROUND_SENSITIVITY,
    POINTING,
    PROFILE,
    SUSPICIOUS,
    Watched,
    wrong_reasons,
)
from litcam.metrics.functional.reliance import RELIANCE_COLUMNS

Key = tuple[int, int]  # an image's place in the dataset, and the class explained
# Its name, whether it is predicted, the map [gh, gw] if it is wanted, pointing game and energy lift.
Seen = tuple[str, bool, Tensor | None, float, float]
Levels = dict[str, float]  # of the statistics in a validation, with its step

_TITLES = {
    POINTING: ("pointing game", "tab:blue"),
    FOREGROUND_SENSITIVITY: ("relative foreground sensitivity", "tab:orange"),
    PROFILE: ("positional profile", "tab:green"),
}


def describe(
    explainer: str,
    epoch: int,
    watched: Watched,
    statistics: Mapping[str, float],
    levels: Mapping[str, float],
    calibration: Calibration,
    since: Mapping[Key, int],
    path: Path | None,
) -> str:
    """One sentence: what was seen, on how many images, and what to look at.

    Args:
        explainer: whose maps they are.
        epoch: how many epochs the model has been trained.
        watched: the images.
        statistics: of these.
        levels: of the statistics.
        calibration: of the levels.
        since: of the images that are right for the wrong reason, the first epoch of it.
        path: of their table.
    """
    within = round((1 - calibration.false_alarms) * (calibration.num_runs + 1))
    sound = f"{within} of {calibration.num_runs} sound runs stay"
    seen = " and ".join(
        f"{_seen(name, explainer, watched)} ({_TITLES[name][0]} {statistics[name]:.2f}; {sound} "
        f"{'above' if SUSPICIOUS[name] < 0 else 'below'} {calibration.limits[name]:.2f})"
        for name, level in levels.items()
        if level >= 1
    )
    longest = min(since.values(), default=epoch)
    lasting = sum(first == longest for first in since.values())
    look = f"{len(since)} of {len(watched.labels)} images are right for the wrong reason"
    look += f", {lasting} of them since epoch {longest}" if since else ""
    where = f": see {path}" if path is not None else ""
    return f"Shortcut alarm after epoch {epoch}: {seen}; {look}{where}"


def _seen(name: str, explainer: str, watched: Watched) -> str:
    if name == POINTING:
        return f"the maps of {explainer} point beside the objects"
    if name == PROFILE:
        return f"the maps of {explainer} favour a place that tells the class"
    assert watched.reliance is not None  # else it has no level
    shares = dict(zip(RELIANCE_COLUMNS, watched.reliance.nanmean(0).tolist(), strict=True))
    of_background, of_object = shares["accuracy_background"], shares["accuracy_object"]
    return (
        f"the model is right on {of_background:.0%} of the backgrounds alone, on {of_object:.0%} of the objects alone"
    )


def image_table(
    seen: Mapping[Key, Seen], watched: Watched, since: Mapping[Key, int], name: Callable[[int], str]
) -> pd.DataFrame:
    """The images that are right for the wrong reason, those that have been so for longest first.

    Args:
        seen: the n images.
        watched: the same.
        since: of those that are right for the wrong reason, the first epoch of it.
        name: gives the name of a class.
    """
    by_map, by_reliance = wrong_reasons(watched)
    columns: dict[str, Sequence[object] | np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {
        "place": [place for place, _ in seen],
        "id": [image for image, *_ in seen.values()],
        "label": [label for _, label in seen],
        "label_name": [name(label) for _, label in seen],
        "since_epoch": [since.get(key, 0) for key in seen],
        "by_map": by_map.numpy(),
        "by_reliance": by_reliance.numpy(),
    }
    if watched.pointing is not None and watched.energy_lift is not None:
        columns |= {"pointing_game": watched.pointing.numpy(), "energy_lift": watched.energy_lift.numpy()}
    if watched.reliance is not None:
        first = RELIANCE_COLUMNS.index("probability")
        columns |= dict(zip(RELIANCE_COLUMNS[first:], watched.reliance[:, first:].T.numpy(), strict=True))
    table = pd.DataFrame(columns)
    return table[table["since_epoch"] > 0].sort_values(["since_epoch", "place", "label"])


def draw_levels(history: Sequence[Levels], explainer: str) -> Figure:
    """The levels of the statistics over the steps: 0 is typical of sound runs, from 1 on the alarm speaks."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = [levels["step"] for levels in history]
    axes.axhspan(1, 1e6, color="tab:red", alpha=0.08, lw=0)
    axes.axhline(0, color="0.7", lw=0.8)
    for name, (title, color) in _TITLES.items():
        values = [levels.get(name, np.nan) for levels in history]
        if any(name in levels for levels in history):
            axes.plot(steps, values, color=color, marker="o", ms=4, label=title)
    reached = [value for levels in history for name, value in levels.items() if name != "step"]
    axes.set(ylim=(min([-1.0, *reached]) - 0.2, 1.05 * max([2.0, *reached])), xlabel="training step", ylabel="level")
    axes.annotate("alarm", (1, 1), (-4, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right")
    if axes.get_legend_handles_labels()[0]:  # none while the model knows nothing
        figure.legend(frameon=False, loc="outside lower center", ncols=3)
    axes.set_title(f"shortcut alarm, maps of {explainer}: sound runs at 0, alarm from 1")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
