"""Progress of a training: Lightning's bar in a terminal, a line every 15 seconds where there is none."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console

from litcam.callbacks.initial_validation import is_rehearsal
from litcam.progress import Pace, Ticker, print_line

EVERY = 15.0  # seconds between two lines
_LOOK_EVERY = 1.0  # seconds between two looks at the metrics: on a GPU each look waits for the step to end


class MetricsBar(RichProgressBar):
    """Lightning's bar without the run's version, which would stand among the metrics as if it were one."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return _without_version(super().get_metrics(trainer, pl_module))


class ProgressLines(ProgressBar):
    """Prints a line every so many seconds: the epoch, its batches, their pace, the time left, the bar's metrics.

    For the logs of clusters and CI, nohup and notebooks, where a bar fills the file or shows nothing. The metrics of
    each validation have a line of their own. ``train.py`` takes it by itself where stdout is no terminal.

    Args:
        seconds: From one line to the next.
    """

    def __init__(self, seconds: float = EVERY) -> None:
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._work, self._pace, self._metrics, self._looked = "", Pace(0), "", 0.0
        self._ticker: Ticker | None = None

    @property
    def is_enabled(self) -> bool:
        """Whether it prints; Lightning asks before it prints the words of a module (``self.print``)."""
        return self._enabled

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._stop()
        self._work = self._metrics = ""
        self._ticker = Ticker(self.seconds, self._tell)
        self._ticker.__enter__()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()  # Lightning leaves the teardown out after an error

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stand_at(_epoch(trainer), trainer.num_training_batches, 0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._stand_at(_epoch(trainer), trainer.num_training_batches, batch_idx + 1)
        if time.monotonic() - self._looked > _LOOK_EVERY:
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stand_at(_evaluation(trainer), sum(_evaluation_batches(trainer)), 0)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        batches = _evaluation_batches(trainer)
        done = int(sum(batches[:dataloader_idx])) + batch_idx + 1
        self._stand_at(_evaluation(trainer), sum(batches), done)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_rehearsal(trainer) or not self._enabled:
            return
        self._look(trainer, pl_module)
        print_line(Console(), f"{_evaluation(trainer)}: {self._metrics or 'done'}")

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end

    def _stand_at(self, work: str, total: float, done: int) -> None:
        if work != self._work or done == 0:
            self._work, self._pace = work, Pace(total, done)
        self._pace.done = done

    def _look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._looked = time.monotonic()
        metrics = _without_version(self.get_metrics(trainer, pl_module))
        self._metrics = ", ".join(f"{name} {_shown(value)}" for name, value in metrics.items())

    def _tell(self) -> None:
        if self._enabled and self._work:
            metrics = f"; {self._metrics}" if self._metrics else ""
            print_line(Console(), f"{self._work}: {self._pace.line('batches')}{metrics}")

    def _stop(self) -> None:
        if self._ticker is not None:
            self._ticker.__exit__()
            self._ticker = None


def default_bar(is_terminal: bool) -> ProgressBar:
    """The progress that ``train.py`` shows unless told otherwise."""
    return MetricsBar() if is_terminal else ProgressLines()


def _epoch(trainer: L.Trainer) -> str:
    last = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}" + (f" of {last}" if last is not None and last > 0 else "")


def _evaluation(trainer: L.Trainer) -> str:
    if trainer.sanity_checking:
        return "sanity check" if is_rehearsal(trainer) else "validation before training"
    stage = "test" if trainer.testing else "validation"
    return f"{_epoch(trainer)}, {stage}" if trainer.state.fn == TrainerFn.FITTING else stage


def _evaluation_batches(trainer: L.Trainer) -> list[float]:
    """The batches of each evaluation loader."""
    if trainer.sanity_checking:
        return list(trainer.num_sanity_val_batches)
    batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    return list(batches) if isinstance(batches, list) else [batches]


def _without_version(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name != "v_num"}


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
