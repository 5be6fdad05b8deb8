"""RunSummary: what a run reached, from before its training to its last epoch, and what to type next."""

import csv
import io
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from litcam.callbacks.initial_validation import epochs_trained, is_rehearsal
from litcam.callbacks.reporting import run_folder, with_validation
from litcam.explainers import check_explainer, list_explainers
from litcam.files import write_whole
from litcam.progress import print_line

# Rows of the table: a scalar's last part, its title. Higher is better.
ROWS = {
    "iou": "IoU with the boxes",
    "mask_iou": "IoU with the masks",
    "pointing_game": "pointing game",
    "energy_inside": "energy inside",
    "abpc": "ABPC",
}


class RunSummary(L.Callback):
    """Writes every validation epoch's scalars to ``history.csv`` in the run folder, and a table at the end of a fit.

    A row's ``epoch`` counts the epochs trained, its ``step`` the training steps: both are 0 in that of the validation
    before the training (:class:`~litcam.callbacks.InitialValidation`). A resumed fit goes on with the history of its
    checkpoint, whatever the run that left this one did later.

    The table has accuracy (multi-label: mean average precision), reliance, localization and perturbation before the
    training, where the run has that, after the first epoch and after the last, with the last epoch's controls beside
    them; then where the run lies and the next commands.
    """

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = list(state_dict["history"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What a resumed fit has behind it stands in its own folder from the beginning."""
        self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_rehearsal(trainer):
            return
        epoch, step = float(epochs_trained(trainer)), trainer.global_step
        scalars = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.history = with_validation(self.history, step, {"epoch": epoch, "step": step, **scalars})
        self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        folder = run_folder(trainer)  # in every process, for it is a collective
        if folder is not None and self.history and trainer.is_global_zero:
            _write_csv(folder / "history.csv", self.history)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero or not self.history:
            return
        console = Console()
        console.print(summary_table(self.history))
        if folder is None:
            return
        print_line(console, f"The run lies in {folder}. Next:")
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            print_line(console, f"  tensorboard --logdir {folder.parent}")
        for checkpoint in _best_checkpoints(trainer)[:1]:
            print_line(console, f"  python evaluate.py --ckpt_path {checkpoint}")


def summary_table(history: list[dict[str, float]]) -> Table:
    """Before the training, first and last epoch side by side, controls beside the explainers' numbers."""
    first, last = next((row for row in history if row["step"] > 0), history[-1]), history[-1]
    points = {"first epoch": first, "last epoch": last}
    if history[0]["step"] == 0:
        points = {"before training": history[0], **points}
    tags = dict.fromkeys(name.split("/")[1] for name in last if name.count("/") == 2)
    watched = [tag for tag in tags if tag in list_explainers() or tag.startswith("captum:")]
    controls = [name for name in watched if check_explainer(name).is_control]
    table = Table(title="validation", title_justify="left")
    table.add_column("", no_wrap=True)
    for heading in (*points, *controls):
        table.add_column(heading, justify="right")
    for tag, title in _of_the_model(last).items():
        table.add_row(title, *(_cell(row, tag) for row in points.values()), *("" for _ in controls))
    for explainer in watched:
        for metric, title in ROWS.items():
            tag = f"val/{explainer}/{metric}"
            if tag in last and explainer not in controls:
                beside = (_cell(last, f"val/{control}/{metric}") for control in controls)
                table.add_row(f"{explainer}: {title}", *(_cell(row, tag) for row in points.values()), *beside)
    return table


def _of_the_model(names: Collection[str]) -> dict[str, str]:
    """The scalars among these that say how good the model is, whatever its maps, and their titles."""
    titles = {"val/accuracy": "accuracy", "val/map": "mean average precision"}
    found = {name: title for name, title in titles.items() if name in names}
    for name in names:
        plain, of_several, number = name.partition("/dataloader_idx_")
        if of_several and plain in titles:
            found[name] = f"{titles[plain]} (dataloader {number})"
        if match := re.fullmatch(r"val/reliance/(mask_)?(?:(\w+)_)?accuracy_(object|background)", name):
            masks, fill, part = match.groups()
            protocol = ", ".join(word for word in ("masks" if masks else "", fill) if word)
            found[name] = f"accuracy on the {part} alone" + (f" ({protocol})" if protocol else "")
    return found


def _cell(epoch: dict[str, float], name: str) -> str:
    return f"{epoch[name]:.3f}" if name in epoch else "-"


def _best_checkpoints(trainer: L.Trainer) -> list[Path]:
    """The best checkpoint of every ModelCheckpoint, the one by accuracy (or average precision) first."""
    callbacks: list[Any] = [callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)]  # type: ignore[attr-defined]
    callbacks.sort(key=lambda callback: callback.monitor not in ("val/accuracy", "val/map"))
    return [Path(callback.best_model_path) for callback in callbacks if callback.best_model_path]


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    """Rows with the union of their columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())
