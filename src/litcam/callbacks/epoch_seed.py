"""EpochSeed: the randomness of every training epoch follows from the run's seed and the epoch's number alone."""

import lightning as L


class EpochSeed(L.Callback):
    """Seeds Python, NumPy and PyTorch at the start of every training epoch.

    A resumed run then continues with the numbers of an uninterrupted one, and nothing that draws random numbers
    between epochs, such as a callback, can change the training.

    Args:
        seed: of the run; epoch e is seeded with ``seed + e``, and process r with ``1000003·r`` more.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rank_offset = 1_000_003 * trainer.global_rank  # processes must not drop the same paths
        L.seed_everything((self.seed + trainer.current_epoch + rank_offset) % 2**32, verbose=False)
