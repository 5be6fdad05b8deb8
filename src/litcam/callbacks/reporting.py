"""Where callbacks write: scalars through the module, pictures to the loggers that take them and to the run folder."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from litcam.callbacks.initial_validation import epochs_trained
from litcam.files import write_whole

_NOT_IN_MLFLOW = re.compile(r"[^a-zA-Z0-9_/. -]")


def metric_device(pl_module: L.LightningModule) -> torch.device:
    """Where metrics live: on the module's device, but on the CPU beside a device without double precision."""
    return torch.device("cpu") if pl_module.device.type == "mps" else pl_module.device


def log_scalars(
    pl_module: L.LightningModule, prefix: str, scalars: dict[str, Tensor], shown: Sequence[str] = ()
) -> None:
    """Log numbers that are the same in every process, so that ModelCheckpoint and EarlyStopping can monitor them."""
    for name, value in scalars.items():
        pl_module.log(prefix + name, value.float(), prog_bar=name in shown, on_epoch=True, rank_zero_only=False)


def log_scores(
    pl_module: L.LightningModule,
    stage: str,
    tag: str,
    scores: dict[str, Tensor],
    counts: dict[str, Tensor],
    shown: Sequence[str] = (),
) -> None:
    """Log what a metric computed: scores and counts as ``<stage>/<tag><name>``.

    The ends of the intervals and the number of images go into a group of their own, ``interval/<stage>/<tag><name>``.
    Curves, and the metric's own counts, are left out.
    """
    scalars = {name: score for name, score in scores.items() if score.ndim == 0}
    ends = {name: score for name, score in scalars.items() if name.endswith(("_low", "_high"))}
    plain = {name: score for name, score in scalars.items() if name not in ends and not name.startswith("num_")}
    log_scalars(pl_module, f"{stage}/{tag}", {**plain, **counts}, shown)
    log_scalars(pl_module, f"interval/{stage}/{tag}", {**ends, "num_images": scores["num_images"]})


def run_folder(trainer: L.Trainer) -> Path | None:
    """The folder of the run, in which its checkpoints folder lies; None where nothing is to be written (fast_dev_run).

    To be called in every process.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by a connector
        return None
    logger = trainer.loggers[0] if trainer.loggers else None
    if logger is None or isinstance(logger, TensorBoardLogger | CSVLogger):
        folder = trainer.log_dir  # a collective
    else:  # whose own folder, if any, all its runs share: the place is that of ModelCheckpoint
        root = logger.save_dir or trainer.default_root_dir
        folder = trainer.strategy.broadcast(str(Path(root, str(logger.name), str(logger.version))))
    return Path(folder) if folder else None


def log_figure(trainer: L.Trainer, tag: str, figure: Figure) -> None:
    """Give a figure to the loggers that take pictures, and write it to the run folder. To be called in every process.

    The figure ``val/<explainer>/<name>`` is there ``<name>/<explainer>/epoch_001.png``, as the panels of HeatmapLogger.
    """
    folder = run_folder(trainer)
    if not trainer.is_global_zero:
        return
    image = draw_figure(figure)
    log_image(trainer, tag, image)
    if folder is not None:
        stage, *explainer, name = tag.split("/")
        file = f"epoch_{epochs_trained(trainer):03d}.png" if stage == "val" else f"{stage}.png"
        save_png(folder.joinpath(name, *explainer, file), image)


def log_image(trainer: L.Trainer, tag: str, image: NDArray[np.uint8]) -> None:
    """Give an image [H, W, 3] to TensorBoard, Weights & Biases and MLflow, where they are among the loggers.

    Under the same tag every time, so that the slider of each works. MLflow's names have no colon, as those of scalars.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, image, global_step=trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [image], step=trainer.global_step)
        elif isinstance(logger, MLFlowLogger):
            name = _NOT_IN_MLFLOW.sub("", tag)
            logger.experiment.log_image(logger.run_id, image, key=name, step=trainer.global_step)


def with_validation(
    history: Sequence[dict[str, float]], step: int, numbers: dict[str, float]
) -> list[dict[str, float]]:
    """A history by training steps with another validation; what a resumed fit does again takes the place of the old."""
    return [*(past for past in history if past["step"] < step), {**numbers, "step": float(step)}]


def log_text(trainer: L.Trainer, tag: str, text: str) -> None:
    """Give a text to TensorBoard and MLflow, where they are among the loggers."""
    for logger in trainer.loggers if trainer.is_global_zero else []:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, text, global_step=trainer.global_step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text, f"{_NOT_IN_MLFLOW.sub('', tag)}.txt")


def draw_figure(figure: Figure) -> NDArray[np.uint8]:
    """A figure as an image [H, W, 3]."""
    canvas: Any = FigureCanvasAgg(figure)  # without annotations
    canvas.draw()
    return np.array(canvas.buffer_rgba(), dtype=np.uint8)[..., :3]


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image [H, W, 3]."""
    whole = io.BytesIO()
    Image.fromarray(image).save(whole, "PNG", compress_level=1)  # a tenth of the time, a little larger
    write_whole(path, whole.getbuffer())
