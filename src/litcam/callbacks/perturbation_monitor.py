"""PerturbationMonitor: is the map true of the model? Every validation epoch, as scalars and a figure."""

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.reporting import log_figure, log_scores, metric_device
from litcam.callbacks.shared import Explained, Target
from litcam.errors import InputError
from litcam.metrics import Perturbation
from litcam.metrics.functional import PROTOCOLS, Precision, Protocol


class PerturbationMonitor(ExplanationMonitor):
    """Logs :class:`~litcam.metrics.Perturbation` of an explainer: ``val/<explainer>/lerf``, ``morf`` and ``abpc``.

    The curves, with their 95 % interval, are the figure ``val/<explainer>/perturbation``. Under another protocol than
    that of AGCAM the names begin with it: ``val/<explainer>/road_lerf``. An image costs 18 forwards (447 under rise),
    hence the subset.

    Args:
        explainer: name of the explanation method.
        explainer_options: its options.
        num_images: size of the fixed random subset; None takes every image.
        target: explain and follow the ``"true"`` (as in the AGCAM paper) or the ``"predicted"`` class.
        batch_size: perturbed images per forward; bounds the memory.
        seed: of the subset.
        protocol: ``"agcam"``, ``"chefer"``, ``"rise"`` or ``"road"``.
        steps: into which the pixels are divided, if not as the protocol has it.
        mean: per channel, of the normalisation of the images, which some protocols need.
        std: per channel, of the same.
        precision: ``"fp32"``, or ``"bf16"`` for forwards under autocast.
        multi_label: whether images may have several classes: each is followed by itself, through the sigmoid.

    Raises:
        InputError: for an option out of its range, and in the first batch if ``multi_label`` does not fit the labels.
    """

    def __init__(
        self,
        explainer: str = "agcam",
        explainer_options: dict[str, Any] | None = None,
        num_images: int | None = 256,
        target: Target = "true",
        batch_size: int = 128,
        seed: int = 0,
        protocol: str = "agcam",
        steps: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        precision: Precision = "fp32",
        multi_label: bool = False,
    ) -> None:
        super().__init__(explainer, explainer_options, target, num_images, seed)
        self.metric = Perturbation(protocol, batch_size, steps, mean, std, seed, precision, multi_label)
        self.prefix = "" if protocol == "agcam" else f"{protocol}_"

    @property
    def tag(self) -> str:
        return f"{self.explainer}/{self.prefix}"

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.metric.to(metric_device(pl_module))
        self.metric.reset()

    def consume(self, explained: Explained) -> None:
        if explained.multi_label != self.metric.protocol.multi_label:
            raise InputError(
                "PerturbationMonitor follows the softmax probability of one label, but the images have several; "
                "set its multi_label: true."
                if explained.multi_label
                else "PerturbationMonitor follows the sigmoid of each label, but the images have one class; "
                "set its multi_label: false."
            )
        trace, explanation = explained.trace, explained.explanation
        images = (trace.images, explained.heatmaps, explanation.targets, explanation.logits)
        self.metric.update(self.metric.measure(trace.module, *images).drawn_by(explained.indices))

    def conclude(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        scores = self.metric.compute()
        counts = {"perturbation_degenerate": scores["num_degenerate"]}
        log_scores(pl_module, stage, self.tag, scores, counts)
        figure = draw_curves(scores, self.explainer, self.metric.protocol)
        log_figure(trainer, f"{stage}/{self.tag}perturbation", figure)


def draw_curves(scores: dict[str, Tensor], explainer: str, protocol: Protocol = PROTOCOLS["agcam"]) -> Figure:
    """Both perturbation curves with their intervals, and the area between them."""
    fractions = 100 * np.array(protocol.points) / protocol.steps
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    first, second = (scores[f"{curve.name}_curve"].cpu().numpy() for curve in protocol.curves)
    if protocol.difference:
        label = f"{protocol.difference.upper()} {float(scores[protocol.difference]):.3f}"
        axes.fill_between(fractions, first, second, color="0.9", label=label)
    marker = "o" if len(fractions) < 30 else None
    for curve, drawn, color in zip(protocol.curves, (first, second), ("tab:blue", "tab:red"), strict=True):
        label = f"{curve.label} {float(scores[curve.name]):.3f}"
        axes.plot(fractions, drawn, color=color, marker=marker, label=label)
        ends = [scores.get(f"{curve.name}_curve_{end}") for end in ("low", "high")]
        if ends[0] is not None and ends[1] is not None:
            axes.fill_between(fractions, ends[0].cpu().numpy(), ends[1].cpu().numpy(), color=color, alpha=0.15, lw=0)
    axes.set(
        xlabel=f"pixels {'inserted or ' if any(curve.inserts for curve in protocol.curves) else ''}removed (%)",
        ylabel=protocol.y_label,
        ylim=(0, 1),
        title=f"{explainer}: {int(scores['num_images'])} images",
    )
    axes.legend(frameon=False, fontsize="small")
    return figure
