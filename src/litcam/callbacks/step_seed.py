"""StepSeed: the randomness of every training step follows from the run's seed and the step's place alone."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch


class StepSeed(L.Callback):
    """Seeds Python, NumPy and PyTorch before every training batch.

    A resumed run then continues with the numbers of an uninterrupted one, and nothing that draws random numbers
    between steps, such as a callback or a data loader that starts, can change the training.

    Args:
        seed: of the run; process, epoch and batch are mixed into it.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Processes must not drop the same paths, hence the rank.
        place = [self.seed, trainer.global_rank, trainer.current_epoch, batch_idx]
        seed = int(np.random.SeedSequence(place).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # timm's mixup draws from NumPy's global generator
        torch.manual_seed(seed)
