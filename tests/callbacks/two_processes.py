"""Runs that test_two_processes.py compares: as a script it is one of several processes, which find each other by
Lightning's environment variables; it writes what each process saw to a file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_cases import History, UserModule, digits, loader, logged, make_trainer, tiny_classifier, tiny_net
from torch import nn

from litcam.callbacks import (
    HeatmapLogger,
    InitialValidation,
    LocalizationMonitor,
    PerturbationMonitor,
    RelianceMonitor,
    RunSummary,
    ShortcutAlarm,
    StepSeed,
)
from litcam.data import DigitScenesDataModule

Data = Callable[[int], Any]  # batch size -> data module or loader


class Frozen(UserModule):
    """Learns nothing, so that runs with other batches keep the same weights; has a buffer, which DDP synchronises."""

    def __init__(self) -> None:
        super().__init__(tiny_net().requires_grad_(False))
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images) * self.scale + self.shift

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.scale], lr=0.0)


def monitors() -> list[L.Callback]:
    """Everything that can be watched, subsets so small that some batches and processes have none of their images."""
    watched: list[L.Callback] = [HeatmapLogger(num_images=5), HeatmapLogger("center", num_images=99)]
    watched += [LocalizationMonitor(), LocalizationMonitor(regions="masks", wrong_predictions="skip")]
    watched += [LocalizationMonitor("rollout", target="predicted", num_images=3)]
    watched += [LocalizationMonitor("center", num_images=1), PerturbationMonitor(num_images=4)]
    watched += [RelianceMonitor(num_images=None), RelianceMonitor("masks", num_images=3), RelianceMonitor(fill="mean")]
    return [*watched, ShortcutAlarm(calibration=None, num_images=7)]


def monitors_of_several_labels() -> list[L.Callback]:
    """What can be watched where images have several classes."""
    return [HeatmapLogger(num_images=5), LocalizationMonitor(), PerturbationMonitor(multi_label=True)]


def module_and_data(case: str, world: int) -> tuple[L.LightningModule, Any, dict[str, Any]]:
    """What a case runs on, and the options of its trainer."""
    if case == "several labels":
        several = DigitScenesDataModule(8, 9, 9, classes=2, batch_size=2, num_workers=0)
        return tiny_classifier(lr=0.0, multi_label=True), several, {}
    if case == "single fit":
        return tiny_classifier(lr=0.0), digits(num_val=1, batch_size=4 // world), {}
    if case.startswith("own"):
        data = digits(num_val=9, batch_size=1 if case != "own batched" else 2)
        limit = {"limit_val_batches": 6 // world} if case == "own limited" else {}
        return tiny_classifier(lr=0.0), data, limit
    return Frozen(), loader(9, batch_size=4 if case == "plain test" else 1), {}


CASES = ("own fit", "own batched", "own limited", "plain fit", "plain test")
FURTHER = ("several labels", "single fit")  # the second process has no image in the latter


def run(case: str, folder: Path, world: int) -> dict[str, Any]:
    """One case: what was logged, which images the panels hold, and the epoch's numbers that RunSummary wrote."""
    module, data, options = module_and_data(case, world)
    watched = monitors() if case != "several labels" else monitors_of_several_labels()
    history = History()
    callbacks = [StepSeed(0), *watched, history, RunSummary(), InitialValidation()]
    if "fit" in case:
        callbacks.append(ModelCheckpoint(monitor="val/agcam/iou", mode="max", filename="best"))
        options = {**options, "enable_checkpointing": True}
    strategy = {"strategy": "ddp", "devices": world} if world > 1 else {}
    trainer = make_trainer(folder / case, callbacks, tensorboard=True, max_epochs=2, **strategy, **options)
    if "fit" in case:
        if isinstance(data, L.LightningDataModule):
            trainer.fit(module, data)
        else:
            trainer.fit(module, loader(8), data)
        scalars = history.scalars
    else:
        (trainer.test if "test" in case else trainer.validate)(module, data, verbose=False)
        scalars = [logged(trainer)]
    return {
        "scalars": scalars,
        "panels": {
            m.explainer: sorted(index for index, _ in m.entries) for m in watched if isinstance(m, HeatmapLogger)
        },
    }


def main() -> None:
    """Run all cases as the process that the environment says."""
    folder, world, rank = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    results = {case: run(case, folder, world) for case in (*CASES, *FURTHER)}
    (folder / f"process_{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
