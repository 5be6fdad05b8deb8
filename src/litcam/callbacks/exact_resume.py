"""ExactResume: a resumed fit goes on exactly where its checkpoint was made, in the middle of an epoch too."""

from typing import Any, Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from litcam.callbacks.best_so_far import take_over
from litcam.callbacks.shared import gather
from litcam.data.module import TrainingLoader

Place = Literal["between epochs", "in a batch", "after a batch"]


class ExactResume(L.Callback):
    """Lets a resumed fit do what the uninterrupted one does after the checkpoint, and nothing twice.

    Lightning's own counters leave out the validation, or the end of the epoch, that was due when a checkpoint was made
    after a training batch; forget the values logged before it, and the gradients of batches that wait for more. The
    batches themselves are the data module's (:class:`~litcam.data.module.TrainingLoader`). What cannot be as it was is
    said in a sentence when the fit resumes. To be put behind all other callbacks, but before those that save
    checkpoints: a validation has ended when all have taken it in.
    """

    def __init__(self) -> None:
        self._validated: int | None = None  # the batch, counted over all epochs, behind which there was a validation
        self._resumed: dict[str, Any] | None = None  # what the checkpoint tells
        self._place: Place = "after a batch"

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validated = trainer.fit_loop.total_batch_idx

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        loop = trainer.fit_loop.epoch_loop
        validated = self._validated == loop.total_batch_idx
        alone = trainer.interrupted and trainer.world_size > 1  # the others may be elsewhere: no collectives
        fetcher: Any = trainer.fit_loop._data_fetcher
        checkpoint["exact_resume"] = {
            "validated": validated,
            "validation_due": loop._should_check_val_fx(fetcher) and not validated,
            "accumulating": loop._should_accumulate(),
            "gradients": _gradients(pl_module) if loop._should_accumulate() and not alone else None,
            "logged": {} if alone else {name: value.cpu() for name, value in trainer.callback_metrics.items()},
            "settings": _settings(trainer),
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING and "exact_resume" in checkpoint:
            self._resumed = checkpoint["exact_resume"]
            told = checkpoint["exact_resume"]
            due, accumulating = told["validation_due"], told["accumulating"]
            self._place = settle(checkpoint["loops"]["fit_loop"], due, accumulating)
            take_over(trainer, checkpoint, told["logged"], self._place if told["validated"] else None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._resumed is None:
            return
        told, self._resumed = self._resumed, None
        trainer.callback_metrics.update({name: value.to(pl_module.device) for name, value in told["logged"].items()})
        if (
            self._place == "between epochs"
        ):  # of the next epoch nothing has happened, whatever Lightning makes of max_steps
            trainer.fit_loop.epoch_loop.restarting = False
        elif told["accumulating"]:
            _restore_gradients(trainer, pl_module, told["gradients"])
        for sentence in self._differences(trainer, told["settings"]):
            rank_zero_warn(sentence)

    def _differences(self, trainer: L.Trainer, before: dict[str, int]) -> list[str]:
        """What is not as in the fit that made the checkpoint."""
        sentences = []
        if self._place == "in a batch":
            sentences.append(
                "The checkpoint was made in the middle of a training step: that batch is used again, and counts twice "
                "in the numbers of the training, and in the gradients where these accumulate."
            )
        if not isinstance(trainer.train_dataloader, TrainingLoader):
            sentences.append(
                "The resumed fit takes its training batches from a loader of your own, from wherever that begins: "
                "some may be used twice and some left out in this epoch."
            )
        changes = [
            f"{name} {before[name]} then, {now} now"
            for name, now in _settings(trainer).items()
            if before.get(name, now) != now
        ]
        if changes:
            sentences.append(
                f"The resumed fit differs from the one that made the checkpoint ({'; '.join(changes)}): it goes on "
                "with other batches than that one would have."
            )
        return sentences


def settle(loops: dict[str, Any], validation_due: bool, accumulating: bool) -> Place:
    """Bring the saved counters of Lightning's fit loop, in place, into a state from which it leaves nothing out.

    Args:
        loops: ``checkpoint["loops"]["fit_loop"]``.
        validation_due: whether a validation had to follow the last batch and had not ended.
        accumulating: whether the gradients of the last batch waited for those of the next.

    Returns:
        Where the checkpoint was made.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    validation = loops["epoch_loop.val_loop.batch_progress"]
    _set(validation, ready=0, started=0, processed=0, completed=0)
    if epochs["current"]["processed"] == epochs["current"]["started"]:
        for counts in (epochs["total"], epochs["current"]):
            counts.update(dict.fromkeys(counts, counts["processed"]))
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
        return "between epochs"
    if batches["current"]["processed"] < batches["current"]["ready"]:
        for counts in (batches["total"], batches["current"]):
            counts.update(dict.fromkeys(counts, counts["completed"]))
        batches["is_last_batch"] = False
        return "in a batch"
    after_batch = batches["current"]["completed"] < batches["current"]["processed"]
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"]
    if validation_due:  # as if cut off in its first batch: Lightning then runs the validation first
        _set(validation, ready=1, started=1, processed=0, completed=0)
    elif after_batch and not accumulating:
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    return "after a batch"


def _set(progress: dict[str, Any], **counts: int) -> None:
    progress.update(total=dict(counts), current=dict(counts), is_last_batch=False)


def _settings(trainer: L.Trainer) -> dict[str, int]:
    """On what the batches depend."""
    loader: Any = trainer.train_dataloader
    settings = {
        "processes": trainer.world_size,
        "batches per epoch": trainer.num_training_batches,
        "batch size": getattr(loader, "batch_size", None),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
    }
    return {name: int(value) for name, value in settings.items() if value not in (None, float("inf"))}


def _gradients(pl_module: L.LightningModule) -> list[dict[str, Tensor]]:
    """Those of every process, which has only its own while they accumulate."""
    parameters = pl_module.named_parameters()
    own = {name: parameter.grad.cpu() for name, parameter in parameters if parameter.grad is not None}
    of_all = gather({pl_module.global_rank: own})
    return [of_all[rank] for rank in sorted(of_all)]


def _restore_gradients(
    trainer: L.Trainer, pl_module: L.LightningModule, gradients: list[dict[str, Tensor]] | None
) -> None:
    if gradients is None or len(gradients) != trainer.world_size:
        rank_zero_warn(
            "The checkpoint was made between two optimizer steps, without the gradients of the batches since the last: "
            "the next step goes without them."
        )
        return
    own = gradients[trainer.global_rank]
    for name, parameter in pl_module.named_parameters():
        if name in own:
            parameter.grad = own[name].to(parameter)
