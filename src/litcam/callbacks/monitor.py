"""ExplanationMonitor: the skeleton of every callback that watches explanations. Subclasses consume and conclude."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import lightning as L

from litcam.callbacks.initial_validation import is_rehearsal
from litcam.callbacks.shared import Explained, Request, Target, shared_explanations
from litcam.errors import InputError, check_at_least, check_choice
from litcam.explainers import check_explainer


class ExplanationMonitor(L.Callback, ABC):
    """Explains validation (or test) images as they pass, reusing the forward of the step itself.

    Works with any LightningModule that holds a Vision Transformer and whose batches are dicts with ``image`` and
    ``label``, or pairs; looks at the first dataloader. Nothing of it reaches the training.

    Args:
        explainer: name of the explanation method.
        explainer_options: its options.
        target: explain the ``"true"`` or the ``"predicted"`` class.
        num_images: watch a fixed random subset of this size; None watches every image.
        seed: of the subset.

    Raises:
        InputError: for an unknown explainer, option or target, or a size below 1.
    """

    def __init__(
        self,
        explainer: str = "agcam",
        explainer_options: dict[str, Any] | None = None,
        target: Target = "true",
        num_images: int | None = None,
        seed: int = 0,
    ) -> None:
        check_explainer(explainer, explainer_options)
        check_choice("target", target, ("true", "predicted"))
        if num_images is not None:
            check_at_least("num_images", num_images)
        self.explainer = explainer
        self.request = Request(explainer, explainer_options or {}, target)
        self.num_images = num_images
        self.seed = seed

    @abstractmethod
    def start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin an epoch: forget what was consumed."""

    @abstractmethod
    def consume(self, explained: Explained) -> None:
        """Take in the explained images of a batch."""

    def finish_batch(self) -> None:
        """End a batch. Runs in every process, whether or not any of its images were consumed, for them to exchange."""

    @abstractmethod
    def conclude(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        """End an epoch: log. Runs in every process, for metrics are synchronised here."""

    @property
    def tag(self) -> str:
        """What the names under which it logs begin with, after the stage."""
        return f"{self.explainer}/"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        others: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        for other in others:
            if other is not self and isinstance(other, type(self)) and other.tag == self.tag:
                raise InputError(
                    f"Two {type(self).__name__}s would log under the same names, val/{self.tag}…, and mix their "
                    "numbers: leave one of them out."
                )
        shared_explanations(trainer).join(self, self.request, self.num_images, self.seed)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        shared_explanations(trainer).start_epoch()
        self.start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if dataloader_idx == 0:
            shared_explanations(trainer).start_batch(pl_module)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if dataloader_idx == 0:
            explained = shared_explanations(trainer).explain(self, trainer, batch)
            if explained is not None:
                self.consume(explained)
            self.finish_batch()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        shared_explanations(trainer).end_epoch()
        if not is_rehearsal(trainer):  # it has shown that everything works: what it consumed is forgotten
            self.conclude(trainer, pl_module, "test" if trainer.testing else "val")

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        shared_explanations(trainer).stop()
