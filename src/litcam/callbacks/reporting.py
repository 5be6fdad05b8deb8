"""Where callbacks write: scalars through the module, pictures to the loggers that take them and to the run folder."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def metric_device(pl_module: L.LightningModule) -> torch.device:
    """Where metrics live: on the module's device, but on the CPU beside a device without double precision."""
    return torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device


def log_scalars(
    pl_module: L.LightningModule, prefix: str, scalars: dict[str, Tensor], shown: Sequence[str] = ()
) -> None:
    """Log numbers that are the same in every process, so that ModelCheckpoint and EarlyStopping can monitor them."""
    for name, value in scalars.items():
        pl_module.log(prefix + name, value.float(), prog_bar=name in shown, on_epoch=True, rank_zero_only=False)


def run_folder(trainer: L.Trainer) -> Path | None:
    """The folder of the run; None where nothing is to be written (fast_dev_run). To be called in every process."""
    return Path(trainer.log_dir) if trainer.log_dir and not trainer.fast_dev_run else None  # type: ignore[attr-defined]


def log_figure(trainer: L.Trainer, tag: str, figure: Figure) -> None:
    """Give a figure to TensorBoard."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(tag, figure, global_step=trainer.global_step, close=True)


def log_image(trainer: L.Trainer, tag: str, image: NDArray[np.uint8]) -> None:
    """Give an image [H, W, 3] to TensorBoard: under the same tag every time, so that its slider works."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, image, global_step=trainer.global_step, dataformats="HWC")


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image [H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, compress_level=1)  # a tenth of the time, a little larger
