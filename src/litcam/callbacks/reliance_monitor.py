"""RelianceMonitor: does the model need the object? Every validation epoch, as scalars and a figure."""

from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.reliance_stream import RelianceStream
from litcam.callbacks.reporting import log_figure, log_scores, metric_device, with_validation
from litcam.callbacks.shared import Explained, common_batches
from litcam.data.batch import ANNOTATIONS, Regions
from litcam.errors import check_choice
from litcam.metrics import Reliance
from litcam.metrics.functional import Precision
from litcam.metrics.functional.reliance import RelianceFill

Epoch = dict[str, float]  # the scores of a validation, and the step it was made at

_LINES = {  # score, its name for people and its colour; also in the order of drawing
    "accuracy": ("whole image", "0.35"),
    "accuracy_object": ("object alone", "tab:blue"),
    "accuracy_background": ("background alone", "tab:orange"),
}
_GAP = 0.07  # between the names at the ends of the lines, in accuracy


class RelianceMonitor(ExplanationMonitor):
    """Logs :class:`~litcam.metrics.Reliance`: ``val/reliance/accuracy_object``, ``accuracy_background`` and so on.

    Whether the model still knows the class from the object alone, and from the background alone: what no map can tell,
    for it needs none. The three accuracies over the epochs, with their 95 % intervals, are the figure
    ``val/reliance/figure``. Against masks the names begin with ``mask_``, under another fill than ``"swap"`` with that:
    ``val/reliance/mask_blur_accuracy``. Beside the scores it logs how many images were ``left_out``, having no object,
    no background or no partner. 2 forwards per image.

    Under ``"swap"`` partners are those of :class:`~litcam.callbacks.reliance_stream.RelianceStream`, the same with any
    number of processes, which exchange the watched images for that.

    Args:
        regions: what the object is: the filled ``"boxes"``, or the pixel ``"masks"``.
        fill: what stands where pixels were removed: another image's background (``"swap"``), 0 in normalised space
            (``"mean"``), or what is kept, blurred into it (``"blur"``).
        num_images: size of the fixed random subset; None takes every image.
        batch_size: images per forward; bounds the memory.
        seed: of the subset.
        precision: ``"fp32"``, or ``"bf16"`` for forwards under autocast.

    Raises:
        InputError: for an option out of its range, and in the first batch if boxes or masks are missing or images have
            several labels.
    """

    def __init__(
        self,
        regions: Regions = "boxes",
        fill: RelianceFill = "swap",
        num_images: int | None = 256,
        batch_size: int = 128,
        seed: int = 0,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__("uniform", num_images=num_images, seed=seed)  # the cheapest: only its forward counts
        check_choice("regions", regions, ANNOTATIONS)
        self.regions: Regions = regions
        self.metric = Reliance(fill, batch_size, precision)
        self.prefix = ("" if regions == "boxes" else "mask_") + ("" if fill == "swap" else f"{fill}_")
        self.history: list[Epoch] = []

    @property
    def tag(self) -> str:
        return f"reliance/{self.prefix}"

    # Not state_dict: of two stateful callbacks Lightning would refuse the second before setup can say why.
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint.setdefault("reliance", {})[self.tag] = self.history

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint.get("reliance", {}).get(self.tag, []))

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.metric.to(metric_device(pl_module))
        self.metric.reset()
        self._stream = RelianceStream(self.metric, self.regions, "RelianceMonitor", common_batches(trainer))

    def consume(self, explained: Explained) -> None:
        self._stream.add(explained)

    def finish_batch(self) -> None:
        for places, measured in self._stream.measure():
            self.metric.update(measured.drawn_by(places))

    def conclude(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        for places, measured in self._stream.end():
            self.metric.update(measured.drawn_by(places))
        del self._stream  # and the images that it holds
        scores = self.metric.compute()
        left_out = torch.stack([scores[name] for name in self.metric.counted if name != "num_images"]).sum()
        log_scores(pl_module, stage, self.tag, scores, {"left_out": left_out})
        now = {name: float(score) for name, score in scores.items()}
        history = [now]
        if trainer.state.fn == TrainerFn.FITTING:
            history = self.history = with_validation(self.history, trainer.global_step, now)
        log_figure(trainer, f"{stage}/{self.tag}figure", draw_reliance(history, self.regions, self.metric.fill))


def draw_reliance(history: list[Epoch], regions: str = "boxes", fill: str = "swap") -> Figure:
    """Accuracy on whole images, objects alone and backgrounds alone with their intervals: over the steps, or once."""
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    if len(history) == 1:
        _draw_once(axes, history[0])
    else:
        _draw_lines(axes, history)
    axes.set_title(f"reliance on the {regions}, {fill}: {int(history[-1]['num_images'])} images")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_once(axes: Axes, scores: Epoch) -> None:
    """A row for each accuracy."""
    for row, (name, (_, color)) in enumerate(_LINES.items()):
        value, low, high = (scores.get(f"{name}{end}", np.nan) for end in ("", "_low", "_high"))
        axes.plot([low, high], [row, row], color=color, lw=2)
        axes.plot([value], [row], color=color, marker="o")
        axes.annotate(f"{value:.2f}", (value, row), (0, 7), textcoords="offset points", ha="center", color=color)
    axes.set_yticks(range(len(_LINES)), [title for title, _ in _LINES.values()])
    axes.set(xlim=(-0.02, 1.02), ylim=(len(_LINES) - 0.5, -0.5), xlabel="accuracy")


def _draw_lines(axes: Axes, history: list[Epoch]) -> None:
    """A line for each accuracy, named at its end."""
    steps = [epoch["step"] for epoch in history]
    for name, (_, color) in _LINES.items():
        values, low, high = ([epoch.get(f"{name}{end}", np.nan) for epoch in history] for end in ("", "_low", "_high"))
        axes.plot(steps, values, color=color, marker="o", ms=4, clip_on=False, zorder=3)
        axes.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
    ends = {name: history[-1][name] for name in _LINES}
    for name, height in _spread(ends).items():
        title, color = _LINES[name]
        axes.annotate(
            f"{title} {ends[name]:.2f}",
            (1, height),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=color,
        )
    axes.set(xlim=(min(steps), max(steps)), ylim=(0, 1), xlabel="training step", ylabel="accuracy")


def _spread(ends: dict[str, float]) -> dict[str, float]:
    """Heights at which names can be read, near the ends of their lines; those that are no number are left out."""
    heights: dict[str, float] = {}
    lowest = 0.0
    for name in sorted((name for name in ends if np.isfinite(ends[name])), key=ends.__getitem__):
        heights[name] = max(ends[name], lowest)
        lowest = heights[name] + _GAP
    highest = 1.0
    for name in reversed(heights):
        heights[name] = min(heights[name], highest)
        highest = heights[name] - _GAP
    return heights
