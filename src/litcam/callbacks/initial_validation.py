"""InitialValidation: a validation before the first training step, as the first point of every curve."""

import math

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn


class InitialValidation(L.Callback):
    """Validates the model before its first training step: what it can do, and where it looks, before any training.

    It is Lightning's own sanity check, but over the whole validation set, and it counts: its scalars go to the loggers
    at step 0, litcam's monitors log what they log after an epoch, and :class:`~litcam.callbacks.RunSummary` keeps it.
    ModelCheckpoint, EarlyStopping and other callbacks pass over it, as over any sanity check. It changes nothing in
    the training and costs one validation. A resumed fit, ``fast_dev_run`` and a further fit of the same trainer have
    none. Of several validation dataloaders the monitors' numbers alone are logged.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and not trainer.fast_dev_run and not trainer.barebones:  # type: ignore[attr-defined]
            trainer.num_sanity_val_steps = math.inf

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_rehearsal(trainer):
            return
        scalars = {name: float(value) for name, value in trainer.logged_metrics.items()}
        for logger in trainer.loggers:  # Lightning itself logs nothing of a sanity check
            logger.log_metrics({**scalars, "epoch": 0.0}, step=0)
            logger.save()


def is_rehearsal(trainer: L.Trainer) -> bool:
    """Whether this validation is a mere sanity check, whose numbers are to be forgotten."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    counts = trainer.global_step == 0 and any(isinstance(callback, InitialValidation) for callback in callbacks)
    return trainer.sanity_checking and not counts


def epochs_trained(trainer: L.Trainer) -> int:
    """How many epochs the validated model has been trained, the current one included; 0 before any training."""
    training = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    return trainer.current_epoch + 1 if training else trainer.current_epoch
