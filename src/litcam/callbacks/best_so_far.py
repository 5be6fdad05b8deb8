"""The best checkpoints before a resume: taken over by the ModelCheckpoints of the resumed fit, into its own folder."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from litcam.callbacks.localized_checkpoint import LocalizedCheckpoint

Scores = dict[str, Tensor]  # of files


def take_over(trainer: L.Trainer, checkpoint: dict[str, Any], logged: dict[str, Tensor], place: str | None) -> None:
    """Rewrite what a checkpoint says of the ModelCheckpoints, so that they choose among the epochs before it too.

    Lightning lets them forget where the folder is another one; and one of several writes its file before those behind
    it have seen the epoch. A file that a later epoch has overwritten is not taken over: that is said in a sentence.

    Args:
        trainer: of the resumed fit, whose callbacks have been set up.
        checkpoint: from which it resumes.
        logged: the values that were logged until then.
        place: where the checkpoint was made, if just after a validation; otherwise None.
    """
    for saver in trainer.checkpoint_callbacks:
        state = checkpoint.get("callbacks", {}).get(saver.state_key)
        if not isinstance(saver, ModelCheckpoint) or state is None:
            continue
        came = place == ("between epochs" if saver._should_save_on_train_epoch_end(trainer) else "after a batch")
        if isinstance(saver, LocalizedCheckpoint):  # finds its files by itself
            name = _name(saver, checkpoint, logged)
            if came and saver.count_in(state, str(name), checkpoint["global_step"], logged) and trainer.is_global_zero:
                _copy(Path(str(trainer.ckpt_path)), name)
            continue
        if saver.monitor is not None:
            found, lost = trainer.strategy.broadcast(_files(trainer, saver, state, checkpoint))
            if lost:
                rank_zero_warn(
                    f"Of the best checkpoints by {saver.monitor} before the resume, {', '.join(lost)} can no longer be "
                    "found or are of a later step: what follows is compared with the others alone."
                )
            if came:
                _count_in(trainer, saver, state, checkpoint, logged, found)
            _rewrite(saver, state, found)
        if state["dirpath"] != saver.dirpath:
            state["last_model_path"] = ""
        state["dirpath"] = saver.dirpath


def _files(
    trainer: L.Trainer, saver: ModelCheckpoint, state: dict[str, Any], checkpoint: dict[str, Any]
) -> tuple[Scores, list[str]]:
    """The saver's files and their scores, copied into its folder, and those that are lost; only one process looks."""
    found: Scores = {}
    lost: list[str] = []
    for path, score in state["best_k_models"].items() if trainer.is_global_zero else ():
        places = (
            Path(str(trainer.ckpt_path)).absolute().parent / Path(path).name,
            Path(path),
        )  # the run may have moved
        file = next((place for place in places if _step(place) <= checkpoint["global_step"]), None)
        if file is None:
            lost.append(path)
            continue
        found[_copy(file, Path(str(saver.dirpath)) / file.name)] = score
    return found, lost


def _step(file: Path) -> float:
    """The training step of a checkpoint; infinite where there is none."""
    if not file.is_file():
        return float("inf")
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return float(content["global_step"])


def _copy(file: Path, target: Path) -> str:
    """A copy that is whole or not there; the file itself where it lies in its place already."""
    if file.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        shutil.copyfile(file, part)
        part.replace(target)
    return str(target)


def _count_in(
    trainer: L.Trainer,
    saver: ModelCheckpoint,
    state: dict[str, Any],
    checkpoint: dict[str, Any],
    logged: dict[str, Tensor],
    found: Scores,
) -> None:
    """Let the saver see the epoch of the checkpoint itself, where it came after the one that wrote it."""
    assert saver.monitor is not None
    score = logged.get(saver.monitor)
    if score is None or score.isnan() or saver.save_top_k == 0:
        return
    if state["current_score"] is not None and torch.equal(state["current_score"].cpu(), score):  # it has
        return
    full = 0 < saver.save_top_k <= len(found)
    worst = _by_score(saver, found)[-1] if full else None
    if worst is not None and not (score > found[worst] if saver.mode == "max" else score < found[worst]):
        return
    if worst is not None:
        del found[worst]
    target = _name(saver, checkpoint, logged)
    found[str(target)] = score
    if trainer.is_global_zero:
        _copy(Path(str(trainer.ckpt_path)), target)
        if worst is not None and Path(worst) != target:
            Path(worst).unlink(missing_ok=True)


def _name(saver: ModelCheckpoint, checkpoint: dict[str, Any], logged: dict[str, Tensor]) -> Path:
    """The file in which the saver would keep the checkpoint."""
    place = {"epoch": torch.tensor(checkpoint["epoch"]), "step": torch.tensor(checkpoint["global_step"])}
    return Path(saver.format_checkpoint_name({**logged, **place})).absolute()


def _by_score(saver: ModelCheckpoint, scores: Scores) -> list[str]:
    """The best first."""
    return sorted(scores, key=lambda path: float(scores[path]), reverse=saver.mode == "max")


def _rewrite(saver: ModelCheckpoint, state: dict[str, Any], found: Scores) -> None:
    """The state of a saver that keeps these files."""
    order = _by_score(saver, found)
    full = len(order) == saver.save_top_k
    state["best_k_models"] = found
    state["best_model_path"] = order[0] if order else ""
    state["best_model_score"] = found[order[0]] if order else None
    state["kth_best_model_path"] = order[-1] if full else ""
    state["kth_value"] = found[order[-1]] if full else saver.kth_value
