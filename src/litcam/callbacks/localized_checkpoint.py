"""LocalizedCheckpoint: of the checkpoints about as accurate as the best, keep the one that looks at the right place."""

import math
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from litcam.errors import InputError, check_choice

_ROUNDING = 1e-6  # of float32 numbers in [0, 1] and their differences


@dataclass(frozen=True)
class Candidate:
    """A checkpoint: its file, its training step, how well its maps localize (higher is better), and its accuracy."""

    path: str
    step: int
    localization: float
    accuracy: float

    def beats(self, other: "Candidate") -> bool:
        """Whether it is the better choice for as long as the other one is a choice."""
        return self.localization >= other.localization and self.accuracy >= other.accuracy


def still_to_win(candidates: list[Candidate], tolerance: float) -> list[Candidate]:
    """Those that are, or can still become, the best choice; the best choice first.

    The best accuracy only ever rises. So one that is not within the tolerance now never will be again, and one that
    another beats in both numbers stays beaten. Of equal localization the more accurate is chosen, then the earlier.

    Args:
        candidates: in any order.
        tolerance: of the accuracy, below the best; absolute.
    """
    best = max((candidate.accuracy for candidate in candidates), default=0.0)
    accurate = [candidate for candidate in candidates if candidate.accuracy >= best - tolerance - _ROUNDING]
    kept: list[Candidate] = []
    for candidate in sorted(accurate, key=lambda one: (-one.localization, -one.accuracy, one.step)):
        if not any(other.beats(candidate) for other in kept):
            kept.append(candidate)
    return kept


class LocalizedCheckpoint(ModelCheckpoint):
    """Keeps the best localized of all checkpoints whose accuracy is within a tolerance of the best so far.

    A checkpoint chosen by accuracy alone can lose much localization (Murtaza et al., WACV 2025).

    ``<filename>.ckpt`` in the checkpoints folder is a link to the chosen one, ``<filename>-epoch=3-step=400.ckpt``.
    When the best accuracy rises, an earlier checkpoint may become the choice: those that still can are kept, the others
    are deleted. An epoch in which one of the two numbers is NaN does not count. A resumed fit goes on with the
    checkpoints that are there.

    Args:
        monitor: the localization: a logged value, such as ``val/agcam/energy_inside`` or ``val/agcam/iou``.
        accuracy: the logged accuracy; higher is better.
        tolerance: how far below the best accuracy a checkpoint may be, absolute: 0.01 is one percentage point.
        mode: whether a lower or a higher localization is better: ``"min"`` or ``"max"``.
        filename: of the link, without ``.ckpt``.
        dirpath: the folder; None for the checkpoints folder of the run.
        save_weights_only: leave out the state of the optimizer and all else that resuming needs.
        every_n_epochs: between two checkpoints.

    Raises:
        InputError: for an option out of its range, and when a value is not logged.
    """

    def __init__(
        self,
        monitor: str = "val/agcam/energy_inside",
        accuracy: str = "val/accuracy",
        tolerance: float = 0.01,
        mode: Literal["min", "max"] = "max",
        filename: str = "best_localized",
        dirpath: str | None = None,
        save_weights_only: bool = False,
        every_n_epochs: int = 1,
    ) -> None:
        check_choice("mode", mode, ("min", "max"))
        if not tolerance >= 0:
            raise InputError(
                f"tolerance is {tolerance}; it has to be 0 or more, such as 0.01 for one percentage point."
            )
        if not filename or set(filename) & set("{}/"):
            raise InputError(f"filename is {filename!r}; it has to be a plain name, such as best_localized.")
        super().__init__(
            dirpath,
            f"{filename}-{{epoch}}-{{step}}",
            monitor,
            mode=mode,
            save_weights_only=save_weights_only,
            every_n_epochs=every_n_epochs,
            enable_version_counter=False,
        )
        self.accuracy = accuracy
        self.tolerance = tolerance
        self.link = filename + self.FILE_EXTENSION
        self.candidates: list[Candidate] = []  # the best choice first

    @property
    def state_key(self) -> str:
        return self._generate_state_key(
            monitor=self.monitor, accuracy=self.accuracy, tolerance=self.tolerance, mode=self.mode, link=self.link
        )

    def state_dict(self) -> dict[str, Any]:
        return {"candidates": [list(astuple(candidate)) for candidate in self.candidates]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.candidates = [Candidate(*values) for values in state_dict["candidates"]]

    def count_in(self, state_dict: dict[str, Any], path: str, step: int, logged: dict[str, Tensor]) -> bool:
        """Let a saved state know of a checkpoint, unless it does: whether that one is a candidate now.

        Args:
            state_dict: changed in place.
            path: where the checkpoint will lie.
            step: of the training.
            logged: the values of its validation.
        """
        candidates = [Candidate(*values) for values in state_dict["candidates"]]
        if (
            any(candidate.step == step for candidate in candidates)
            or not {self.monitor, self.accuracy} <= logged.keys()
        ):
            return False
        new = self._candidate(path, step, float(logged[str(self.monitor)]), float(logged[self.accuracy]))
        if math.isnan(new.localization) or math.isnan(new.accuracy):
            return False
        kept = still_to_win([*candidates, new], self.tolerance)
        state_dict["candidates"] = [list(astuple(candidate)) for candidate in kept]
        return new in kept

    def _candidate(self, path: str, step: int, localization: float, accuracy: float) -> Candidate:
        return Candidate(path, step, localization if self.mode == "max" else -localization, accuracy)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if "://" in str(self.dirpath):
            raise InputError(
                f"LocalizedCheckpoint links files in {self.dirpath}, which only works in a local folder: set dirpath."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self.candidates:
            return
        found: list[Candidate] = trainer.strategy.broadcast(self._found() if trainer.is_global_zero else [])
        self._choose(still_to_win(found, self.tolerance))
        if self.candidates:
            self._link(trainer)

    def _save_topk_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Take in an epoch. What ModelCheckpoint calls when it is time for a checkpoint, after its usual checks."""
        assert self.monitor is not None
        for name in (self.monitor, self.accuracy):
            if name not in monitor_candidates:
                known = ", ".join(name for name in monitor_candidates if name not in ("epoch", "step"))
                raise InputError(
                    f"LocalizedCheckpoint chooses by {name!r}, which is not logged: add the callback that logs it, or "
                    f"set monitor and accuracy to two of {known or 'the values that your module logs'}."
                )
        numbers = [float(monitor_candidates[name]) for name in (self.monitor, self.accuracy)]
        localization, accuracy = trainer.strategy.broadcast(numbers)  # one decision for all processes
        if math.isnan(localization) or math.isnan(accuracy):
            return
        path = str(Path(self.format_checkpoint_name(monitor_candidates)).absolute())
        new = self._candidate(path, trainer.global_step, localization, accuracy)
        before = [candidate for candidate in self.candidates if candidate.path != path]
        kept = still_to_win([*before, new], self.tolerance)
        if new not in kept:
            return
        self._choose(kept)  # before the saving, for the checkpoint holds the state of this callback
        self._save_checkpoint(trainer, path)
        self._link(trainer)
        for candidate in before:
            if candidate not in kept and self._should_remove_checkpoint(trainer, candidate.path, path):
                self._remove_checkpoint(trainer, candidate.path)

    def _choose(self, candidates: list[Candidate]) -> None:
        """Set what ModelCheckpoint tells others."""
        sign = 1 if self.mode == "max" else -1
        self.candidates = candidates
        self.best_k_models = {one.path: torch.tensor(sign * one.localization) for one in candidates}
        self.best_model_path = str(Path(str(self.dirpath), self.link)) if candidates else ""
        self.best_model_score = self.best_k_models[candidates[0].path] if candidates else None
        self.current_score = self.best_model_score

    def _link(self, trainer: L.Trainer) -> None:
        Path(str(self.dirpath)).mkdir(parents=True, exist_ok=True)
        self._link_checkpoint(trainer, self.candidates[0].path, self.best_model_path)

    def _found(self) -> list[Candidate]:
        """The candidates whose files are there, in the folder of the checkpoint resumed from or in this run's."""
        found, lost = [], []
        for candidate in self.candidates:
            places = (Path(candidate.path), Path(str(self.dirpath), Path(candidate.path).name).absolute())
            path = next((place for place in places if place.exists()), None)
            if path is None:
                lost.append(candidate.path)
            else:
                found.append(replace(candidate, path=str(path)))
        if lost:
            rank_zero_warn(f"LocalizedCheckpoint goes on without {', '.join(lost)}, which are no longer there.")
        return found
