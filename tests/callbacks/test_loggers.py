"""Panels and figures reach the run folder and every logger that takes pictures, by one name, at the training's step."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning_cases import UserModule, loader, make_trainer
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from litcam.callbacks import HeatmapLogger, PerturbationMonitor
from litcam.callbacks.reporting import draw_figure, log_image, run_folder

TAGS = ("val/agcam/heatmaps", "val/agcam/perturbation")


def monitors() -> list[L.Callback]:
    return [HeatmapLogger(num_images=2), PerturbationMonitor(num_images=2)]


def read_png(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB"))


def written(folder: Path, tag: str) -> list[np.ndarray[Any, Any]]:
    """The pictures of both epochs in the run folder."""
    _, explainer, name = tag.split("/")
    return [read_png(folder / name / explainer / f"epoch_00{epoch}.png") for epoch in (1, 2)]


@pytest.fixture
def wandb_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbLogger]:
    """Weights & Biases without the network."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "wandb_runs").mkdir()
    yield WandbLogger(offline=True, save_dir=tmp_path / "wandb_runs", project="vits")
    wandb.finish()


@pytest.fixture
def mlflow_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MLFlowLogger:
    """MLflow in plain files, without a server."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # it recommends a database, which takes further packages
    return MLFlowLogger(tracking_uri=f"file:{tmp_path / 'mlflow_runs'}")


def test_weights_and_biases_gets_every_epochs_pictures(
    tmp_path: Path, wandb_logger: WandbLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Any = wandb_logger.experiment
    log, rows = run.log, []
    monkeypatch.setattr(run, "log", lambda row: rows.append(row) or log(row))
    trainer = make_trainer(tmp_path, monitors(), logger=wandb_logger, max_epochs=2)
    trainer.fit(UserModule(), loader(), loader())
    log_image(trainer, "val/captum:Saliency/heatmaps", np.zeros((4, 5, 3), np.uint8))
    media = Path(run.dir) / "media" / "images"
    for tag in TAGS:
        assert [row["trainer/global_step"] for row in rows if tag in row] == [2, 4]
        files = sorted(media.glob(f"{tag}_*.png"), key=lambda path: int(path.name.split("_")[1]))
        pictures = written(tmp_path / "wandb_runs" / "vits" / str(wandb_logger.version), tag)
        for file, picture in zip(files, pictures, strict=True):
            assert np.array_equal(read_png(file), picture)
    assert len(list(media.rglob("*.png"))) == 2 * 2 + 1
    assert run.summary["val/captum:Saliency/heatmaps"]["height"] == 4


def test_mlflow_gets_every_epochs_pictures(tmp_path: Path, mlflow_logger: MLFlowLogger) -> None:
    trainer = make_trainer(tmp_path, monitors(), logger=mlflow_logger, max_epochs=2)
    trainer.fit(UserModule(), loader(), loader())
    log_image(trainer, "val/captum:Saliency/heatmaps", np.zeros((4, 5, 3), np.uint8))
    client, run = mlflow_logger.experiment, str(mlflow_logger.run_id)
    folder = tmp_path / "mlflow_runs" / str(mlflow_logger.experiment_id) / run
    artifacts = [item.path for item in client.list_artifacts(run, "images") if item.path.endswith(".png")]
    for tag in TAGS:
        for step, picture in zip((2, 4), written(folder, tag), strict=True):
            [name] = [path for path in artifacts if path.startswith(f"images/{tag.replace('/', '~')}+step+{step}+")]
            assert np.array_equal(read_png(Path(client.download_artifacts(run, name))), picture)
    assert sum("val~captumSaliency~heatmaps+step+4+" in path for path in artifacts) == 1
    assert len(artifacts) == 2 * 2 + 1


def test_several_loggers_get_the_same_pictures_and_the_first_has_the_run_folder(
    tmp_path: Path, wandb_logger: WandbLogger, mlflow_logger: MLFlowLogger
) -> None:
    tensorboard = TensorBoardLogger(str(tmp_path), name="run", version="")
    trainer = make_trainer(tmp_path, monitors(), logger=[tensorboard, wandb_logger, mlflow_logger])
    trainer.validate(UserModule(), loader(), verbose=False)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert sorted(events.Tags()["images"]) == list(TAGS)
    assert [image.step for image in events.Images(TAGS[1])] == [0]
    panel = read_png(tmp_path / "run" / "heatmaps" / "agcam" / "epoch_000.png")
    [media] = Path(wandb_logger.experiment.dir).rglob("heatmaps_*.png")
    assert np.array_equal(read_png(media), panel)
    [artifact] = (tmp_path / "mlflow_runs").rglob("val~agcam~heatmaps+step+0+*.png")
    assert np.array_equal(read_png(artifact), panel)
    assert len(list(tmp_path.rglob("epoch_*.png"))) == 2, "in one run folder"


@pytest.mark.parametrize("kind", ["tensorboard", "csv", "none"])
def test_without_them_pictures_lie_in_the_run_folder(tmp_path: Path, kind: str) -> None:
    loggers: dict[str, Any] = {
        "tensorboard": TensorBoardLogger(str(tmp_path), name="run"),
        "csv": CSVLogger(str(tmp_path), name="run"),
        "none": False,
    }
    trainer = make_trainer(tmp_path, monitors(), logger=loggers[kind])
    trainer.validate(UserModule(), loader(), verbose=False)
    trainer.test(UserModule(), loader(), verbose=False)
    folder = tmp_path if kind == "none" else tmp_path / "run" / "version_0"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    names = ("heatmaps", "perturbation")
    assert files == {f"{name}/agcam/{file}.png" for name in names for file in ("epoch_000", "test")}


def test_the_run_folder_is_where_the_checkpoints_folder_lies(
    tmp_path: Path, mlflow_logger: MLFlowLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for save_dir in (mlflow_logger.save_dir, None):  # MLflow behind a server has none
        monkeypatch.setattr(MLFlowLogger, "save_dir", property(lambda logger, folder=save_dir: folder))
        checkpoints = ModelCheckpoint(save_last=True)
        trainer = make_trainer(tmp_path / "root", [checkpoints], logger=mlflow_logger, enable_checkpointing=True)
        trainer.fit(UserModule(), loader(), loader())
        folder = run_folder(trainer)
        assert folder is not None
        assert folder.parents[1] == Path(save_dir or tmp_path / "root")
        assert Path(checkpoints.last_model_path).parent == folder / "checkpoints"


def test_protocols_and_figures_of_explainers_do_not_overwrite_each_other(tmp_path: Path) -> None:
    normalisation: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    callbacks = [
        PerturbationMonitor(num_images=2),
        PerturbationMonitor("center", num_images=2),
        PerturbationMonitor(num_images=2, protocol="chefer", **normalisation),
    ]
    make_trainer(tmp_path, callbacks).validate(UserModule(), loader(), verbose=False)
    files = sorted(path.relative_to(tmp_path).parent.as_posix() for path in tmp_path.rglob("epoch_000.png"))
    assert files == ["chefer_perturbation/agcam", "perturbation/agcam", "perturbation/center"]


def test_a_figure_is_drawn_at_its_size_and_resolution() -> None:
    figure = Figure(figsize=(3, 2), dpi=50, facecolor="red")
    image = draw_figure(figure)
    assert image.shape == (100, 150, 3)
    assert (image == (255, 0, 0)).all()


def test_the_callbacks_need_neither_wandb_nor_mlflow() -> None:
    code = (
        "import sys; sys.modules['wandb'] = sys.modules['mlflow'] = None\n"  # imports of them now fail
        "import litcam.callbacks"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
