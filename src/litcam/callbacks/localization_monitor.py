"""LocalizationMonitor: does the model look at the object? Every validation epoch, as scalars."""

from typing import Any, Literal

import lightning as L
import torch

from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.reporting import log_scores, metric_device
from litcam.callbacks.shared import Explained, Target
from litcam.data.batch import ANNOTATIONS, Regions
from litcam.errors import check_choice
from litcam.explainers import check_explainer
from litcam.metrics import Localization


class LocalizationMonitor(ExplanationMonitor):
    """Logs :class:`~litcam.metrics.Localization` of an explainer as ``val/<explainer>/<metric>``.

    Against masks the tags are ``val/<explainer>/mask_<metric>``. Beside the scores it logs ``degenerate`` (maps that
    say nothing) and ``wrong_predictions`` (images predicted wrongly), as counts.

    Args:
        explainer: name of the explanation method.
        explainer_options: its options.
        regions: the true region: the filled ``"boxes"``, compared with the boxes of the thresholded map (the protocol
            of the AGCAM paper), or the pixel ``"masks"``, compared with the thresholded map itself.
        threshold: of the map, in [0, 1), or ``"otsu"`` for each map's own.
        target: explain the ``"true"`` or the ``"predicted"`` class.
        wrong_predictions: ``"keep"`` or ``"skip"`` images that are predicted wrongly (the paper skips).
        num_images: watch a fixed random subset of this size; None watches every image.
        seed: of the subset.
        paper: reproduce the rounding of the AGCAM authors' code.

    Raises:
        InputError: for an option out of its range, and in the first batch if boxes or masks are missing.
    """

    def __init__(
        self,
        explainer: str = "agcam",
        explainer_options: dict[str, Any] | None = None,
        regions: Regions = "boxes",
        threshold: float | Literal["otsu"] = 0.5,
        target: Target = "true",
        wrong_predictions: Literal["keep", "skip"] = "keep",
        num_images: int | None = None,
        seed: int = 0,
        paper: bool = False,
    ) -> None:
        super().__init__(explainer, explainer_options, target, num_images, seed)
        check_choice("regions", regions, ANNOTATIONS)
        check_choice("wrong_predictions", wrong_predictions, ("keep", "skip"))
        self.regions: Regions = regions
        self.wrong_predictions = wrong_predictions
        self.metric = Localization(threshold, "boxes" if regions == "boxes" else "mask", paper)
        self.prefix = "" if regions == "boxes" else "mask_"
        # The progress bar has room for one number: controls and masks stay in TensorBoard.
        self.shown = ("iou",) if regions == "boxes" and not check_explainer(explainer).is_control else ()

    @property
    def tag(self) -> str:
        return f"{self.explainer}/{self.prefix}"

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.metric.to(metric_device(pl_module))
        self.metric.reset()
        self.num_wrong = torch.zeros((), dtype=torch.int64, device=pl_module.device)

    def consume(self, explained: Explained) -> None:
        self.num_wrong += (~explained.correct).sum()
        if self.wrong_predictions == "skip":
            explained = explained.choose(explained.correct)
        regions = explained.regions(self.regions, "LocalizationMonitor compares with")
        measured = self.metric.measure(explained.heatmaps.to(self.metric.device), regions.to(self.metric.device))
        self.metric.update(measured.drawn_by(explained.indices))  # maps of other batches round differently

    def conclude(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        scores = self.metric.compute()
        counts = {
            "degenerate": scores["num_degenerate"],
            "wrong_predictions": trainer.strategy.reduce(self.num_wrong, reduce_op="sum"),
        }
        log_scores(pl_module, stage, self.tag, scores, counts, self.shown)
