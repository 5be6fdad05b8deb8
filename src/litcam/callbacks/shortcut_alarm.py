"""ShortcutAlarm: says so when a model seems to be right for the wrong reason, at a known rate of false alarms."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from litcam.callbacks.calibration import SHIPPED, Calibration, calibrate, read_sound_runs
from litcam.callbacks.initial_validation import epochs_trained
from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.pictures import Pictures
from litcam.callbacks.reliance_stream import RelianceStream
from litcam.callbacks.reporting import log_figure, log_scalars, log_text, run_folder, with_validation
from litcam.callbacks.shared import Explained, common_batches, gather
from litcam.callbacks.shortcut_report import Key, Levels, Seen, describe, draw_levels, image_table
from litcam.callbacks.shortcut_statistics import (
    FOREGROUND_SENSITIVITY,
    POINTING,
    PROFILE,
    SUSPICIOUS,
    Watched,
    pointing_and_lift,
    shortcut_statistics,
    wrong_reasons,
)
from litcam.data.batch import ANNOTATIONS, Regions
from litcam.errors import InputError, check_choice
from litcam.files import write_whole
from litcam.heatmaps import on_grid, scale
from litcam.metrics import Reliance
from litcam.metrics.functional.reliance import RELIANCE_COLUMNS
from litcam.metrics.image_metric import Measured


class ShortcutAlarm(ExplanationMonitor):
    """Speaks when the maps and the reliance of a model are no longer those of sound runs.

    Three statistics of the watched images, each of its true class (:mod:`litcam.callbacks.shortcut_statistics`): the
    ``pointing_game`` of the maps, the ``relative_foreground_sensitivity`` under swapped backgrounds, and the
    ``positional_profile``, which needs no boxes and is watched where there are none. Limits come from a calibration on
    sound runs (:func:`litcam.callbacks.calibration.calibrate`): of further sound runs of the same kind and length at
    most a share of ``false_alarms`` crosses one in any validation. litcam's own calibration is of small models
    fine-tuned on DigitScenes; for numbers that hold for your data give folders of sound runs of yours, watched with
    ``calibration: null``.

    Logs ``val/<explainer>/alarm/level`` (0 is typical of sound runs, from 1 on the alarm speaks), each statistic, the
    ``accuracy`` on the watched images and ``wrong_reason``, the share of these that is right for the wrong reason: the
    object alone does not suffice for the right prediction but the background alone does, or less of the map lies on the
    object than by chance. ``alarm/<explainer>/images.csv`` in the run folder lists them, each with the epoch since when
    it has been so in every validation; ``val/<explainer>/alarm`` is a figure of the levels. When the alarm speaks it
    prints one sentence, the first time and, if it has changed, at the end of the fit; TensorBoard has it as text.
    Against masks the names begin with ``mask_``.

    A cue within the object, or one that reliance cannot remove, is not seen: no alarm is no proof. The cost is that of
    the maps, which other callbacks share, and two forwards of the watched images for reliance.

    Args:
        explainer: name of the explanation method.
        explainer_options: its options.
        regions: where the object is: the filled ``"boxes"``, the pixel ``"masks"``, or None if the data have neither.
        reliance: measure the reliance too, where there are regions.
        calibration: ``"shipped"``; or folders of sound runs, or tables like their ``history.csv``; None only logs.
        false_alarms: the chance of an alarm in a sound run, over all its validations; with n sound runs not below
            1 / (n + 1).
        min_accuracy: validations with a lower accuracy on the watched images do not count: a model that knows nothing
            yet has no reasons. Neither does one before the training, for the limits are of models that were trained.
        stop: end the training when the alarm speaks.
        num_images: size of the watched subset, fixed and random; None takes every image. The limits are for about as
            many as in the sound runs, 300 in litcam's own: fewer scatter more, and the profile grows with their root.
        batch_size: images per forward of the reliance; bounds the memory.
        seed: of the subset.

    Raises:
        InputError: for an option out of its range, a calibration that cannot be read or lacks the explainer, and in the
            first batch if boxes or masks are missing, or if reliance is asked for and images have several labels.
    """

    def __init__(
        self,
        explainer: str = "agcam",
        explainer_options: dict[str, Any] | None = None,
        regions: Regions | None = "boxes",
        reliance: bool = True,
        calibration: str | list[str] | None = SHIPPED,
        false_alarms: float = 0.05,
        min_accuracy: float = 0.5,
        stop: bool = False,
        num_images: int | None = 256,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        super().__init__(explainer, explainer_options, "true", num_images, seed)
        if regions is not None:
            check_choice("regions", regions, ANNOTATIONS)
        if not 0 <= min_accuracy <= 1:
            raise InputError(f"min_accuracy is {min_accuracy}; it has to lie in [0, 1].")
        self.regions: Regions | None = regions
        self.reliance = Reliance("swap", batch_size, resamples=0) if reliance and regions is not None else None
        self.prefix = "mask_" if regions == "masks" else ""
        self.names = [PROFILE] if regions is None else [POINTING]
        self.names += [FOREGROUND_SENSITIVITY] if self.reliance is not None else []
        self.min_accuracy = min_accuracy
        self.stop = stop
        self.calibration: Calibration | None = None
        if calibration is not None:
            runs = read_sound_runs(calibration, f"val/{self.tag}", self.names)
            suspicious = {name: SUSPICIOUS[name] for name in self.names}
            self.calibration = calibrate(runs, suspicious, false_alarms, min_accuracy)
        self.history: list[Levels] = []
        self.since: dict[Key, int] = {}  # of the images that are right for the wrong reason, the first epoch of it
        self.spoken: str | None = None  # the latest words
        self._printed: str | None = None

    @property
    def tag(self) -> str:
        return f"{self.explainer}/alarm/{self.prefix}"

    # Not state_dict: of two stateful callbacks Lightning would refuse the second before setup can say why.
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        since = [[*key, epoch] for key, epoch in self.since.items()]
        state = {"history": self.history, "since": since, "spoken": self.spoken}
        checkpoint.setdefault("shortcut_alarm", {})[self.tag] = state

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get("shortcut_alarm", {}).get(self.tag)
        if state is not None:
            self.history, self.spoken = list(state["history"]), state["spoken"]
            self._printed = self.spoken
            self.since = {(place, label): epoch for place, label, epoch in state["since"]}

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen: dict[Key, Seen] = {}
        self._outcomes: dict[int, list[float]] = {}  # rows of the reliance, by place
        self._stream = (
            RelianceStream(self.reliance, self.regions, "ShortcutAlarm's reliance", common_batches(trainer))
            if self.reliance is not None and self.regions is not None
            else None
        )

    def consume(self, explained: Explained) -> None:
        maps = explained.explanation.heatmaps
        hits = lifts = torch.full((len(maps),), torch.nan)
        if self.regions is not None:
            regions = explained.regions(self.regions, "ShortcutAlarm compares with", "set its regions to null")
            hits, lifts = pointing_and_lift(maps, regions)
        each: list[Tensor | None] = [None] * len(maps)  # only the profile takes the maps themselves
        if self.regions is None:
            halves = scale(on_grid(maps, explained.trace.grid)).half().cpu()
            each = [half.clone() for half in halves]  # a view would be sent between processes with all of the batch
        keys = zip(explained.indices.tolist(), explained.labels.tolist(), strict=True)
        columns = zip(explained.ids, explained.correct.tolist(), each, hits.tolist(), lifts.tolist(), strict=True)
        self._seen |= dict(zip(keys, columns, strict=True))
        if self._stream is not None:
            self._stream.add(explained)

    def finish_batch(self) -> None:
        if self._stream is not None:
            self._take(self._stream.measure())

    def conclude(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        """Images that have waited in vain for a partner have no outcome."""
        if self._stream is not None:
            self._take(self._stream.end())
        seen, outcomes = dict(sorted(gather(self._seen).items())), gather(self._outcomes)
        self._seen, self._outcomes, self._stream = {}, {}, None  # let go of everything
        if not seen:
            return
        watched = self._watched(seen, outcomes)
        statistics = shortcut_statistics(watched)
        wrong = torch.stack(wrong_reasons(watched)).any(0)
        levels = {}
        counts = watched.accuracy >= self.min_accuracy and not trainer.sanity_checking
        if self.calibration is not None and counts:
            levels = self.calibration.levels(statistics)
        level = max((level for level in levels.values() if math.isfinite(level)), default=0.0)
        scalars = {
            **{name: statistics[name] for name in self.names},
            "accuracy": watched.accuracy,
            "wrong_reason": float(wrong.double().mean()),
            **({"level": level} if self.calibration is not None else {}),
        }
        on_device = {name: torch.tensor(value, device=pl_module.device) for name, value in scalars.items()}
        log_scalars(pl_module, f"{stage}/{self.tag}", on_device)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        epoch = epochs_trained(trainer)
        still_wrong = [key for key, one in zip(seen, wrong.tolist(), strict=True) if one and epoch > 0]
        self.since = {key: min(epoch, self.since.get(key, epoch)) for key in still_wrong}
        table = image_table(seen, watched, self.since, Pictures(trainer).name)
        path = self._write(trainer, table)
        if self.calibration is None:
            return
        self.history = with_validation(self.history, trainer.global_step, levels)
        log_figure(trainer, f"{stage}/{self.explainer}/{self.prefix}alarm", draw_levels(self.history, self.explainer))
        if level >= 1:
            self.spoken = describe(
                self.explainer, epoch, watched, statistics, levels, self.calibration, self.since, path
            )
            self._speak(trainer, pl_module, self.spoken)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.spoken != self._printed:
            pl_module.print(self.spoken)
            self._printed = self.spoken

    def _take(self, measurements: Iterable[tuple[Tensor, Measured]]) -> None:
        """Keep the outcomes of the reliance."""
        for places, measured in measurements:
            kept = places[measured.kept.to(places.device)].tolist()
            self._outcomes |= dict(zip(kept, measured.rows.tolist(), strict=True))

    def _watched(self, seen: Mapping[Key, Seen], outcomes: Mapping[int, list[float]]) -> Watched:
        """What the processes have seen together."""
        _, correct, _, hits, lifts = zip(*seen.values(), strict=True)
        maps = [one for _, _, one, _, _ in seen.values() if one is not None]
        unknown = [torch.nan] * len(RELIANCE_COLUMNS)
        rows = [outcomes.get(place, unknown) for place, _ in seen]
        return Watched(
            torch.tensor([label for _, label in seen]),
            torch.tensor(correct),
            torch.stack(maps).double() if maps else None,
            torch.tensor(hits, dtype=torch.float64) if self.regions is not None else None,
            torch.tensor(lifts, dtype=torch.float64) if self.regions is not None else None,
            torch.tensor(rows, dtype=torch.float64) if self.reliance is not None else None,
        )

    def _write(self, trainer: L.Trainer, table: pd.DataFrame) -> Path | None:
        folder = run_folder(trainer)  # in every process, for it is a collective
        path = folder / "alarm" / self.explainer / f"{self.prefix}images.csv" if folder is not None else None
        if path is not None and trainer.is_global_zero:
            write_whole(path, table.to_csv(index=False))
        return path

    def _speak(self, trainer: L.Trainer, pl_module: L.LightningModule, words: str) -> None:
        """Say what was seen, the first time on the console too, and stop if so asked."""
        if self._printed is None:
            pl_module.print(words)
            self._printed = words
        log_text(trainer, f"val/{self.tag}words", words)
        trainer.should_stop = trainer.should_stop or self.stop
