"""The pictures of the drift of maps: a filmstrip, and similarities over the epochs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from litcam.callbacks.drift_history import NOT_FOUND, REFERENCES, Drift, Key, PanelMaps
from litcam.callbacks.reporting import draw_figure
from litcam.errors import check_at_least
from litcam.heatmaps import colorize, overlay, upsample
from litcam.metrics.functional.similarity import SIMILARITIES

Pixels = NDArray[np.uint8]

_TILE, _GAP, _CAPTION = 96, 4, 20  # pixels
_PAPER, _INK, _RIGHT, _WRONG = (255, 255, 255), (30, 30, 30), (20, 120, 50), (200, 30, 30)
_TITLES = {
    "spearman": "Spearman correlation (same: 1)",
    "centred_pearson": "Pearson correlation, centred (same: 1)",
    "top_iou": "IoU of the top 10 % of the tokens (same: 1)",
    "jensen_shannon": "Jensen-Shannon divergence, bits (same: 0)",
    "centroid_shift": "shift of the centroid, share of the side (same: 0)",
}
_COLOURS = {"previous": "tab:blue", "first": "tab:orange", "best": "tab:green"}
_BLACK = np.zeros((_TILE, _TILE, 3), np.uint8)


@dataclass(frozen=True)
class Filmstrip:
    """What a filmstrip shows of a history, and how.

    Attributes:
        rows: images at most: those whose maps move most.
        columns: epochs at most: the first, the last and others evenly between.
        colormap: name of a matplotlib colour map.

    Raises:
        InputError: for no row, less than two columns, and an unknown colour map.
    """

    rows: int = 8
    columns: int = 12
    colormap: str = "turbo"

    def __post_init__(self) -> None:
        check_at_least("rows", self.rows)
        check_at_least("columns", self.columns, least=2)
        colorize(np.zeros((1, 1)), self.colormap)  # an unknown colour map fails here, before any work


def moving_most(drifts: Sequence[Drift], most: int) -> dict[int, float]:
    """Which images of the panel move most, by their maps' mean Spearman correlation from each epoch to the next.

    Args:
        drifts: of at least two epochs.
        most: so many images, or the whole panel.

    Returns:
        The correlations by the images' numbers in the panel, lowest first; in the end NaN for images without any,
        whose maps are degenerate.
    """
    moved = torch.stack([drift.similarities["previous"]["spearman"] for drift in drifts[1:]]).nanmean(0)
    return {row: float(moved[row]) for row in moved.nan_to_num(2).argsort(stable=True)[:most].tolist()}


def draw_drift(
    history: Sequence[PanelMaps],
    drifts: Sequence[Drift],
    moving: Mapping[int, float],
    images: Mapping[Key, Pixels],
    name: Callable[[int], str],
    explainer: str,
    style: Filmstrip,
) -> dict[str, Pixels]:
    """Both pictures of the drift, by the names of their files: ``drift``, the filmstrip, and ``drift_curves``.

    Args:
        history: of at least two epochs.
        drifts: of these.
        moving: the images to show, see :func:`moving_most`.
        images: the pixels of these, [H, W, 3] each; the tile of one that is not there is black.
        name: of a class.
        explainer: name of the method.
        style: of the filmstrip.
    """
    keys = history[-1].keys
    filmstrip = draw_filmstrip(
        history,
        list(moving),
        [images.get(keys[row], _BLACK) for row in moving],
        [f"Spearman {correlation:.2f}" for correlation in moving.values()],
        lambda label: "not found" if label == NOT_FOUND else name(label),
        style,
    )
    return {"drift": filmstrip, "drift_curves": draw_figure(draw_similarities(drifts, explainer))}


def draw_filmstrip(
    history: Sequence[PanelMaps],
    rows: Sequence[int],
    images: Sequence[Pixels],
    notes: Sequence[str],
    name: Callable[[int], str],
    style: Filmstrip,
) -> Pixels:
    """One image per row and one epoch per column: its map over it, the predicted class below, green if it is right.

    Args:
        history: of at least one epoch.
        rows: which images of the panel.
        images: the pixels of those, [H, W, 3] each.
        notes: a line below each image's true class.
        name: of a class.
        style: how many epochs, and the colours.
    """
    chosen = np.linspace(0, len(history) - 1, min(style.columns, len(history))).round().astype(int).tolist()
    width, height = _TILE + _GAP, _TILE + 2 * _CAPTION
    picture = Image.new("RGB", ((len(chosen) + 1) * width + _GAP, len(rows) * height + _CAPTION + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=13)

    def write(column: int, y: int, text: str, colour: tuple[int, int, int] = _INK) -> None:
        while draw.textlength(text, font=font) > _TILE - 6 and len(text) > 2:
            text = text[:-2].rstrip("…") + "…"
        draw.text((_GAP + column * width + _TILE / 2, y), text, fill=colour, font=font, anchor="ma")

    write(0, _GAP, "image")
    for column, number in enumerate(chosen, start=1):
        epoch = history[number].epoch
        write(column, _GAP, f"epoch {epoch}" if epoch > 0 else "before training")
    for line, (row, image, note) in enumerate(zip(rows, images, notes, strict=True)):
        y = _CAPTION + _GAP + line * height
        target = int(history[0].targets[row])
        picture.paste(Image.fromarray(thumbnail(image)), (_GAP, y))
        write(0, y + _TILE + 3, name(target))
        write(0, y + _TILE + 3 + 15, note, (110, 110, 110))
        for column, number in enumerate(chosen, start=1):
            grid = torch.from_numpy(history[number].maps[row]).float()
            heatmap = upsample(grid, (_TILE, _TILE)).numpy()
            tile = Image.fromarray(overlay(thumbnail(image), heatmap, colormap=style.colormap))
            picture.paste(tile, (_GAP + column * width, y))
            predicted = int(history[number].predictions[row])
            write(column, y + _TILE + 3, name(predicted), _RIGHT if predicted == target else _WRONG)
    return np.asarray(picture)


def draw_similarities(drifts: Sequence[Drift], explainer: str) -> Figure:
    """Every similarity over the epochs, to every reference, with that of the mirrored images as noise floor."""
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True).flatten()
    epochs = [drift.epoch for drift in drifts]
    for axes, name in zip(panels, SIMILARITIES, strict=False):
        for reference in REFERENCES:
            known = [drift for drift in drifts if reference in drift.similarities]
            values = [drift.similarities[reference][name] for drift in known]
            same = [drift.unchanged[reference] for drift in known]
            colour, x = _COLOURS[reference], [drift.epoch for drift in known]
            axes.plot(x, [float(v.nanmean()) for v in values], color=colour, marker=".", label=f"to {reference}")
            kept = [float(v[s].nanmean()) for v, s in zip(values, same, strict=True)]
            axes.plot(x, kept, color=colour, ls=":")
        floor = [float(drift.floor[name].nanmean()) if drift.floor else np.nan for drift in drifts]
        axes.plot(epochs, floor, color="0.55", ls="--", label="noise floor: mirrored images")
        axes.set_title(_TITLES[name], fontsize="medium")
    panels[-1].plot(epochs, [float(drift.gini.nanmean()) for drift in drifts], color="0.2", marker=".")
    panels[-1].set_title("Gini index of the maps", fontsize="medium")
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels[3:]:
        axes.set_xlabel("epochs trained")
    handles, labels = panels[0].get_legend_handles_labels()
    handles.insert(-1, Line2D([], [], color="0.2", ls=":"))
    labels.insert(-1, "the same, prediction unchanged")
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize="small")
    figure.suptitle(f"{explainer}: drift of the maps, {len(drifts[0].gini)} images", fontsize="large")
    return figure


def thumbnail(image: Pixels) -> Pixels:
    """An image [H, W, 3] at the size of the filmstrip's tiles."""
    if image.shape[:2] == (_TILE, _TILE):
        return image
    method = cv2.INTER_AREA if min(image.shape[:2]) > _TILE else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (_TILE, _TILE), interpolation=method), dtype=np.uint8)
