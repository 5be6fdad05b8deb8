"""PerturbationMonitor: is the map true of the model? Every validation epoch, as scalars and a figure."""

from typing import Any, Literal

import lightning as L
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.reporting import log_figure, log_scalars, metric_device
from litcam.callbacks.shared import Explained, Target
from litcam.errors import InputError
from litcam.metrics import Perturbation


class PerturbationMonitor(ExplanationMonitor):
    """Logs :class:`~litcam.metrics.Perturbation` of an explainer as ``val/<explainer>/lerf``, ``morf`` and ``abpc``.

    The curves are the figure ``val/<explainer>/perturbation``. An image costs 18 forwards, hence the subset.

    Args:
        explainer: name of the explanation method.
        explainer_options: its options.
        num_images: size of the fixed random subset; None takes every image.
        target: explain and follow the ``"true"`` (as in the AGCAM paper) or the ``"predicted"`` class.
        batch_size: perturbed images per forward; bounds the memory.
        seed: of the subset.

    Raises:
        InputError: for an option out of its range.
    """

    def __init__(
        self,
        explainer: str = "agcam",
        explainer_options: dict[str, Any] | None = None,
        num_images: int | None = 256,
        target: Target = "true",
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(explainer, explainer_options, target, num_images, seed)
        self.metric = Perturbation(batch_size=batch_size)

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.metric.to(metric_device(pl_module))
        self.metric.reset()

    def consume(self, explained: Explained) -> None:
        if explained.multi_label:
            raise InputError(
                "PerturbationMonitor follows the softmax probability of one label, but the images have several; "
                "leave this callback out."
            )
        trace, explanation = explained.trace, explained.explanation
        self.metric.update(trace.module, trace.images, explained.heatmaps, explanation.targets, explanation.logits)

    def conclude(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        scores = self.metric.compute()
        tag = f"{stage}/{self.tag}"
        areas = {name: scores[name] for name in ("lerf", "morf", "abpc")}
        log_scalars(pl_module, tag, {**areas, "perturbation_degenerate": scores["num_degenerate"]})
        log_figure(trainer, tag + "perturbation", draw_curves(scores, self.explainer))


def draw_curves(scores: dict[str, Tensor], explainer: str) -> Figure:
    """Both perturbation curves and the area between them."""
    fractions = np.linspace(0, 100, len(scores["lerf_curve"]))
    lerf, morf = (scores[f"{order}_curve"].cpu().numpy() for order in ("lerf", "morf"))
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(fractions, morf, lerf, color="0.9", label=f"ABPC {float(scores['abpc']):.3f}")
    axes.plot(fractions, lerf, color="tab:blue", marker="o", label=f"least relevant first {float(scores['lerf']):.3f}")
    axes.plot(fractions, morf, color="tab:red", marker="o", label=f"most relevant first {float(scores['morf']):.3f}")
    axes.set(
        xlabel="pixels removed (%)",
        ylabel="probability of the class",
        ylim=(0, 1),
        title=f"{explainer}: {int(scores['num_images'])} images",
    )
    axes.legend(frameon=False, fontsize="small")
    return figure
