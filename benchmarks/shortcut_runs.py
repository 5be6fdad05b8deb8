"""The runs of shortcut_study.py: fine-tunes on scenes with a cue, and what every epoch of them shows, in one file each.

python benchmarks/shortcut_runs.py --jobs 2             # those that are not there yet; about 40 seconds each

Every run has a problem of its own (contrast, clutter and texture of its scenes), so that accuracies differ for better
reasons than cheating. Each process works with one thread: two of them on two cores do more than one with two.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.shared import Explained
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule
from litcam.data.cues import CHANCE, CueKind
from litcam.heatmaps import on_grid
from litcam.metrics import Reliance
from litcam.metrics.functional.reliance import RelianceFill

EPOCHS, NUM_TRAIN, NUM_VAL, LEARNING_RATE = 4, 3000, 300, 0.004
MAPS = ("agcam", "evidence", "legrad", "generic_attention", "rollout", "random", "center")
FILLS: tuple[RelianceFill, ...] = ("swap", "mean")
SOUND = CHANCE  # the strength of a cue that says nothing
CALIBRATION: tuple[tuple[CueKind, int], ...] = (("none", 8), ("patch", 4), ("stamp", 4), ("tint", 4))  # sound runs
ARMS: tuple[tuple[CueKind, float], ...] = (  # of the test; half as many runs of the last four
    ("patch", SOUND),
    ("patch", 1.0),
    ("stamp", SOUND),
    ("stamp", 1.0),
    ("tint", SOUND),
    ("tint", 1.0),
    ("patch", 0.9),
    ("stamp", 0.9),
    ("inside", SOUND),
    ("inside", 1.0),
)


@dataclass(frozen=True)
class Run:
    """One fine-tune.

    Attributes:
        arm: which part of the study it belongs to.
        cue: kind of the cue in its scenes.
        strength: chance that the cue's class is the label.
        seed: of its training, its scenes, its cues and how hard its scenes are.
    """

    arm: Literal["calibration", "test"]
    cue: CueKind
    strength: float
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.arm}_{self.cue}_{self.strength}_{self.seed:02d}"

    @property
    def scenes(self) -> dict[str, Any]:
        """What its data module is made of; each run is about another, more or less hard problem."""
        difficulty = np.random.default_rng(self.seed)
        return {
            "num_train": NUM_TRAIN,
            "num_val": NUM_VAL,
            "contrast": float(difficulty.uniform(50, 90)),
            "clutter": int(difficulty.integers(2, 11)),
            "texture": float(difficulty.uniform(5, 15)),
            "seed": self.seed,
            "cue": self.cue,
            "cue_strength": self.strength,
            "cue_seed": self.seed,
            "num_workers": 0,
        }


@dataclass
class Epoch:
    """What n validation images show after so many epochs; epoch 0 is before any training.

    Attributes:
        epoch: how many epochs the model has been trained.
        logits: float32 [n, C].
        redrawn_logits: float32 [n, C], of the same images whose cues are redrawn.
        maps: by explainer, of the true class, float32 [n, gh, gw], each divided by its largest absolute value.
        reliance: by fill, float32 [n, 6]: the columns of litcam's reliance; NaN for images it leaves out.
    """

    epoch: int
    logits: NDArray[np.float32]
    redrawn_logits: NDArray[np.float32]
    maps: dict[str, NDArray[np.float32]]
    reliance: dict[str, NDArray[np.float32]]


@dataclass
class Record:
    """A run that has ended.

    Attributes:
        run: which.
        labels: int64 [n].
        regions: bool [n, H, W], the boxes' pixels.
        epochs: 0 … EPOCHS.
    """

    run: Run
    labels: NDArray[np.int64]
    regions: NDArray[np.bool_]
    epochs: list[Epoch] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write a file, at once or not at all."""
        arrays: dict[str, NDArray[Any]] = {
            "run": np.array(json.dumps(asdict(self.run))),
            "labels": self.labels,
            "regions": np.packbits(self.regions, axis=None),
            "shape": np.array(self.regions.shape),
        }
        for epoch in self.epochs:
            arrays |= {f"{epoch.epoch}/logits": epoch.logits, f"{epoch.epoch}/redrawn_logits": epoch.redrawn_logits}
            arrays |= {f"{epoch.epoch}/maps/{name}": maps.astype(np.float16) for name, maps in epoch.maps.items()}
            arrays |= {f"{epoch.epoch}/reliance/{fill}": rows for fill, rows in epoch.reliance.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Record":
        """Read what :meth:`write` wrote."""
        with np.load(path) as arrays:
            shape = tuple(arrays["shape"].tolist())
            regions = np.unpackbits(arrays["regions"], count=int(np.prod(shape))).reshape(shape).astype(np.bool_)
            record = cls(Run(**json.loads(str(arrays["run"]))), arrays["labels"], regions)
            number = 0
            while f"{number}/logits" in arrays:
                of_epoch = [name for name in arrays.files if name.startswith(f"{number}/")]
                maps = {name.split("/")[2]: arrays[name].astype(np.float32) for name in of_epoch if "/maps/" in name}
                reliance = {name.split("/")[2]: arrays[name] for name in of_epoch if "/reliance/" in name}
                logits, redrawn = arrays[f"{number}/logits"], arrays[f"{number}/redrawn_logits"]
                record.epochs.append(Epoch(number, logits, redrawn, maps, reliance))
                number += 1
        return record


class _Keeper(ExplanationMonitor):
    """Keeps the maps of an explainer and the images they are of, from the validation before the training on."""

    def __init__(self, explainer: str) -> None:
        super().__init__(explainer)

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.maps: list[Tensor] = []
        self.seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def consume(self, explained: Explained) -> None:
        maps = on_grid(explained.explanation.heatmaps, explained.trace.grid).cpu()
        self.maps.append(maps / maps.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny))
        regions = explained.regions("boxes", "The study compares with")
        self.seen.append((explained.trace.images, explained.labels, regions, explained.explanation.logits))

    def conclude(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        """Whatever is kept is read by the recorder."""


class _Recorder(L.Callback):
    """Writes an epoch at the end of every validation, that before the training included."""

    def __init__(self, run: Run, keepers: Sequence[_Keeper], redrawn: Sequence[Tensor]) -> None:
        self.run, self.keepers, self.redrawn = run, keepers, redrawn
        self.record: Record | None = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        images, labels, regions, logits = (torch.cat(part) for part in zip(*self.keepers[0].seen, strict=True))
        if self.record is None:
            self.record = Record(self.run, labels.numpy(), regions.numpy())
        with torch.no_grad():
            redrawn = torch.cat([pl_module(batch) for batch in self.redrawn])
        maps = {keeper.explainer: torch.cat(keeper.maps).numpy() for keeper in self.keepers}
        reliance = {fill: measure_reliance(pl_module, images, regions, labels, logits, fill) for fill in FILLS}
        number = len(self.record.epochs)
        self.record.epochs.append(Epoch(number, logits.numpy(), redrawn.numpy(), maps, reliance))


def measure_reliance(
    net: torch.nn.Module, images: Tensor, regions: Tensor, labels: Tensor, logits: Tensor, fill: RelianceFill
) -> NDArray[np.float32]:
    """Rows of reliance, one per image: [n, 6]; NaN for those that are left out."""
    measured = Reliance(fill, resamples=0).measure(net, images, regions, labels, logits)
    rows = torch.full((len(images), measured.rows.shape[1]), torch.nan)
    rows[measured.kept] = measured.rows.float()
    return rows.numpy()


def execute(run: Run, folder: Path) -> None:
    """Train, and write the run's file."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    L.seed_everything(run.seed, verbose=False)
    module = ViTClassifier("vit_mini_patch8_64", num_classes=10, lr=LEARNING_RATE, warmup_share=0.05)
    redrawn = _images(module, {**run.scenes, "redraw_cue": run.cue != "none"})
    keepers = [_Keeper(name) for name in MAPS]
    recorder = _Recorder(run, keepers, redrawn)
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=-1,  # all validation images before the training: epoch 0
        callbacks=[*keepers, recorder],
    )
    trainer.fit(module, datamodule=DigitScenesDataModule(**run.scenes))
    assert recorder.record is not None
    recorder.record.write(folder / f"{run.name}.npz")


def _images(module: ViTClassifier, scenes: Mapping[str, Any]) -> list[Tensor]:
    """The normalised validation images, in batches."""
    data = DigitScenesDataModule(**scenes)
    data.use_data_config(module.data_config)
    return [data.on_after_batch_transfer(batch, 0)["image"] for batch in data.val_dataloader()]


def plan(seeds: int) -> list[Run]:
    """All runs of the study, no two of the same seed: the calibration's, then of each arm in turn; half of the last."""
    kinds = [cue for cue, count in CALIBRATION for _ in range(count)]
    calibration = [Run("calibration", cue, SOUND, 10_000 + number) for number, cue in enumerate(kinds)]
    test = [
        Run("test", cue, strength, 100 * ARMS.index((cue, strength)) + number)
        for arms, count in ((ARMS[:6], seeds), (ARMS[6:], seeds // 2))
        for number in range(count)
        for cue, strength in arms
    ]
    return [*calibration, *test]


def make_missing(runs: Sequence[Run], folder: Path, jobs: int) -> None:
    """Make the runs that have no file in the folder, so many at a time, each in a process of its own."""
    missing = [run for run in runs if not (folder / f"{run.name}.npz").exists()]
    with Progress(console=Console(stderr=True)) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task("runs", total=len(missing))
        for done in as_completed([pool.submit(_in_process, run, folder) for run in missing]):
            done.result()
            progress.advance(task)


def _in_process(run: Run, folder: Path) -> None:
    command = [sys.executable, __file__, "--only", json.dumps(asdict(run)), "--folder", str(folder)]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/shortcut_study"), help="of the runs' files")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each arm")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--only", type=json.loads, help=argparse.SUPPRESS)  # the run of this process
    options = parser.parse_args()
    if options.only is not None:
        torch.set_num_threads(1)
        execute(Run(**options.only), options.folder)
    else:
        make_missing(plan(options.seeds), options.folder, options.jobs)
