"""Fits that tell step by step what they did, for the tests of resuming; as a script one of two processes."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_cases import make_trainer, tiny_classifier

from litcam.callbacks import ExactResume, LocalizationMonitor, RunSummary, StepSeed
from litcam.data import DigitScenesDataModule

Event = tuple[Any, ...]

SAVERS: list[dict[str, Any]] = [
    {"filename": "batch-{step}", "every_n_train_steps": 1},
    {"filename": "validation-{step}", "monitor": "val/loss", "save_on_train_epoch_end": False},
    {"filename": "epoch-{step}", "save_on_train_epoch_end": True},
]


class Diary(L.Callback):
    """What happened: every batch, validation and epoch's end, each with the weights and what was logged."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.events.append(("epoch", trainer.current_epoch, trainer.global_step))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        place = (trainer.current_epoch, batch_idx, trainer.global_step)
        self.events.append(("batch", *place, tuple(batch["id"]), digest(pl_module)))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            logged = sorted((name, float(value)) for name, value in trainer.callback_metrics.items())
            self.events.append(("validation", trainer.current_epoch, trainer.global_step, digest(pl_module), logged))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.events.append(("epoch's end", trainer.current_epoch, trainer.global_step, digest(pl_module)))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["events_before"] = len(self.events)


def digest(module: L.LightningModule) -> str:
    """Differs in the least bit of a weight."""
    content = b"".join(value.detach().cpu().numpy().tobytes() for value in module.state_dict().values())
    return hashlib.sha256(content).hexdigest()


@dataclass
class Told:
    """What a fit did, its history, and its trainer."""

    events: list[Event]
    history: list[dict[str, float]]
    trainer: L.Trainer


def scenes(num_workers: int = 0) -> DigitScenesDataModule:
    """Four batches of two scenes in every epoch of one process, and a scene left over."""
    return DigitScenesDataModule(9, 6, 6, batch_size=2, num_workers=num_workers)


def fit(
    folder: Path,
    savers: Sequence[dict[str, Any]] = SAVERS,
    ckpt_path: Path | None = None,
    data: Callable[[], Any] = scenes,
    others: Sequence[L.Callback] = (),
    make_model: Callable[[], L.LightningModule] = lambda: tiny_classifier(lr=0.01, drop_path=0.1),
    boxes: bool = True,
    **options: Any,
) -> Told:
    """A fit of two epochs as train.py makes it, unless the options say otherwise."""
    diary, summary = Diary(), RunSummary()
    saving = [ModelCheckpoint(folder, **{"save_top_k": -1, "enable_version_counter": False, **one}) for one in savers]
    watched = [LocalizationMonitor("center")] if boxes else []
    callbacks = [StepSeed(), *watched, diary, *others, summary, ExactResume(), *saving]
    settings = {"max_epochs": 2, "limit_train_batches": 1.0, "enable_checkpointing": bool(saving), **options}
    trainer = make_trainer(folder, callbacks, **settings)
    trainer.fit(make_model(), data(), ckpt_path=ckpt_path, weights_only=True)
    return Told(diary.events, summary.history, trainer)


def checkpoints(folder: Path) -> list[tuple[Path, int]]:
    """Those of a fit, and after how many events of its diary each was made."""
    files = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns)
    return [(file, torch.load(file, weights_only=True)["events_before"]) for file in files]


def main() -> None:
    """As one of two processes: resume between two batches, two validations and two epochs."""
    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    options = {"strategy": "ddp", "devices": 2, "accumulate_grad_batches": 2, "val_check_interval": 1}
    data = lambda: DigitScenesDataModule(13, 6, 6, batch_size=2, num_workers=1)  # noqa: E731
    straight = fit(folder, data=data, **options)
    straight.trainer.strategy.barrier()
    for file, before in checkpoints(folder)[1:7:2]:
        resumed = fit(folder / "resumed", (), file, data, **options)
        # What the second process logs of its own batches is in no checkpoint, and in no history.
        told, expected = (
            [event[:4] if rank and event[0] == "validation" else event for event in one.events]
            for one in (resumed, straight)
        )
        assert told == expected[before:], (rank, file.name)
        assert rank or repr(resumed.history) == repr(straight.history), file.name


if __name__ == "__main__":
    main()
