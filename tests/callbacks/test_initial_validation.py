"""InitialValidation: every curve begins before the training, and nothing else in the run changes."""

import copy
import csv
import io
import math
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning_cases import (
    Scenes,
    UserModule,
    assert_logged,
    digits,
    loader,
    localization_by_hand,
    make_trainer,
    perturbation_by_hand,
    tiny_classifier,
    with_tag,
)
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from cli_cases import ROOT, SMALL_RUN
from litcam import cli
from litcam.callbacks import (
    DriftMonitor,
    HeatmapLogger,
    InitialValidation,
    LocalizationMonitor,
    LocalizedCheckpoint,
    PerturbationMonitor,
    RelianceMonitor,
    RunSummary,
    ShortcutAlarm,
    StepSeed,
)
from litcam.callbacks.drift_history import read_history
from litcam.callbacks.progress_bars import ProgressLines
from litcam.callbacks.run_summary import summary_table
from litcam.data.batch import collate
from litcam.errors import InputError


def history_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "history.csv").open()))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A fit of two epochs with every monitor: its folder, and the net before the training."""
    folder = tmp_path_factory.mktemp("fitted")
    module = UserModule()
    before = copy.deepcopy(module.net).eval()
    monitors: list[L.Callback] = [LocalizationMonitor(), RelianceMonitor()]
    monitors += [PerturbationMonitor(), HeatmapLogger(num_images=4), ShortcutAlarm(reliance=False, calibration=None)]
    monitors += [DriftMonitor(monitor="val/loss", mode="min"), RunSummary(), InitialValidation()]
    make_trainer(folder, monitors, tensorboard=True, max_epochs=2).fit(module, loader(8), loader())
    return folder / "run", before


def test_every_scalar_of_a_validation_has_a_first_point_at_step_0(fitted: tuple[Path, Any]) -> None:
    events = EventAccumulator(str(fitted[0]), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "val/" in tag]
    later = {"previous", "first", "best", "unchanged"}  # of the drift: nothing is there yet to compare with
    begun = [tag for tag in tags if not later & set(tag.replace("/", "_").split("_"))]
    assert {"val/loss", "val/agcam/iou", "val/agcam/abpc", "val/reliance/accuracy_object"} <= set(begun)
    assert {"val/agcam/alarm/pointing_game", "val/agcam/drift/gini"} <= set(begun)
    for tag in begun:
        assert [event.step for event in events.Scalars(tag)] == [0, 1, 3], tag
    assert all([event.step for event in events.Scalars(tag)] == [1, 3] for tag in set(tags) - set(begun))


def test_the_first_point_is_of_the_model_as_it_was_before_the_training(fitted: tuple[Path, Any]) -> None:
    folder, before = fitted
    rows = history_of(folder)
    assert [(row["epoch"], row["step"]) for row in rows] == [("0.0", "0.0"), ("1.0", "2.0"), ("2.0", "4.0")]
    first = {name: float(value) for name, value in rows[0].items() if value}
    assert_logged(first, with_tag("val/agcam/", localization_by_hand(before, loader())))
    assert_logged(first, with_tag("val/agcam/", perturbation_by_hand(before, loader())), tolerance=1e-5)
    assert rows[0]["val/agcam/iou"] != rows[1]["val/agcam/iou"]


def test_pictures_begin_before_the_training_too(fitted: tuple[Path, Any]) -> None:
    events = EventAccumulator(str(fitted[0]), size_guidance={"images": 0}).Reload()
    for tag in ("val/agcam/heatmaps", "val/agcam/perturbation", "val/reliance/figure"):
        assert [image.step for image in events.Images(tag)] == [0, 2, 4]
        _, explainer, name = tag.split("/")
        files = {file.name for file in (fitted[0] / name / explainer).iterdir()}
        assert files == {"epoch_000.png", "epoch_001.png", "epoch_002.png"}, "by the epochs trained"


def test_the_drift_begins_with_it(fitted: tuple[Path, Any]) -> None:
    history = read_history(fitted[0] / "drift" / "agcam")
    assert [maps.epoch for maps in history] == [0, 1, 2]
    logits = torch.cat([fitted[1](batch["image"]) for batch in loader()])
    assert history[0].predictions.tolist() == logits.argmax(1).tolist()
    assert math.isnan(history[0].score), "not a candidate for the best epoch"


class Unlearns(UserModule):
    """Climbs its loss, so that no later validation is as good as that before the training."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return -super().training_step(batch, batch_idx)


def test_what_chooses_the_best_epoch_chooses_among_trained_weights(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "best", "val/loss", mode="min")
    localized = LocalizedCheckpoint("val/loss", "val/agcam/iou", tolerance=1.0, mode="min", dirpath=str(tmp_path))
    stopping = EarlyStopping("val/loss", mode="min")
    callbacks = [LocalizationMonitor(), RunSummary(), best, localized, stopping, InitialValidation()]
    trainer = make_trainer(tmp_path, callbacks, max_epochs=2, enable_checkpointing=True)
    trainer.fit(Unlearns(), loader(8), loader())
    before, first, _ = (float(row["val/loss"]) for row in history_of(tmp_path))
    assert before < first
    assert torch.load(best.best_model_path, weights_only=True)["global_step"] == 2
    assert localized.candidates[0].step == 2
    assert stopping.best_score == pytest.approx(first)


def test_the_alarm_knows_no_wrong_reason_before_the_training(fitted: tuple[Path, Any]) -> None:
    table = pd.read_csv(fitted[0] / "alarm" / "agcam" / "images.csv")
    assert (table["since_epoch"] >= 1).all()


def test_the_alarm_does_not_speak_before_the_training(tmp_path: Path) -> None:
    sound = pd.DataFrame({"run": ["a", "b"], "step": [3, 3], "val/center/alarm/accuracy": [0.9, 0.9]})
    sound["val/center/alarm/pointing_game"] = [0.99, 1.0]  # far above what the centre reaches
    sound.to_csv(tmp_path / "sound.csv", index=False)
    options: dict[str, Any] = {"calibration": [str(tmp_path / "sound.csv")], "false_alarms": 0.5, "min_accuracy": 0.0}
    alarm = ShortcutAlarm("center", reliance=False, stop=True, **options)
    trainer = make_trainer(tmp_path, [alarm, InitialValidation(), RunSummary()], max_epochs=3)
    trainer.fit(tiny_classifier(lr=0.0), digits())
    assert alarm.spoken is not None
    assert "after epoch 1" in alarm.spoken
    levels = [float(row["val/center/alarm/level"]) for row in history_of(tmp_path)]
    assert levels[0] == 0, "the limits are of trained models"
    assert levels[1] >= 1
    assert len(levels) == 2, "it stops after an epoch"


def test_a_resumed_fit_and_a_further_fit_have_none(tmp_path: Path) -> None:
    def fit(folder: Path, ckpt_path: Path | None, **options: Any) -> L.Trainer:
        callbacks = [StepSeed(), LocalizationMonitor(), RunSummary(), InitialValidation()]
        callbacks += [ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, auto_insert_metric_name=False)]
        trainer = make_trainer(folder, callbacks, tensorboard=True, enable_checkpointing=True, **options)
        trainer.fit(tiny_classifier(lr=0.01), digits(), ckpt_path=ckpt_path, weights_only=True)
        return trainer

    fit(tmp_path / "first", None, max_epochs=2)
    trainer = fit(tmp_path / "second", tmp_path / "2.ckpt", max_epochs=2)
    first, second = (
        [(row["epoch"], row["step"], row["val/agcam/iou"]) for row in history_of(tmp_path / name / "run")]
        for name in ("first", "second")
    )
    assert [step for _, step, _ in first] == ["0.0", "2.0", "4.0"]
    assert second == first, "the validation before the training is that of the first fit"
    events = EventAccumulator(str(tmp_path / "second" / "run")).Reload()
    assert [event.step for event in events.Scalars("val/agcam/iou")] == [3]
    trainer.fit_loop.max_epochs = 3
    trainer.fit(tiny_classifier(lr=0.01), digits())
    steps = [row["step"] for row in history_of(tmp_path / "second" / "run")]
    assert steps == ["0.0", "2.0", "4.0", "6.0"]


def test_what_cannot_be_validated_is_said_before_the_first_step(tmp_path: Path) -> None:
    class BadImage(Scenes):
        def __getitem__(self, index: int) -> Any:
            if index == 10:
                raise InputError("image 10 is broken")
            return super().__getitem__(index)

    for callbacks, steps in (([InitialValidation()], 0), ([], 2)):
        trainer = make_trainer(tmp_path, callbacks)
        with pytest.raises(InputError, match="image 10 is broken"):
            trainer.fit(UserModule(), loader(), DataLoader(BadImage(), 4, collate_fn=collate))
        assert trainer.global_step == steps


def test_loggers_without_pictures_have_the_first_point_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [LocalizationMonitor(), InitialValidation()], logger=CSVLogger(tmp_path, "run"))
    trainer.fit(UserModule(), loader(8), loader())
    table = pd.read_csv(tmp_path / "run" / "version_0" / "metrics.csv").dropna(subset="val/agcam/iou")
    assert table["step"].tolist() == [0, 1]


def test_of_several_loaders_the_first_is_watched_before_the_training_too(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [LocalizationMonitor(), InitialValidation(), RunSummary()])
    module = UserModule()
    before = copy.deepcopy(module.net)
    trainer.fit(module, loader(8), [loader(), loader(3)])
    first, second = history_of(tmp_path)
    assert float(first["val/agcam/iou"]) == pytest.approx(localization_by_hand(before.eval(), loader())["iou"])
    assert second["val/loss/dataloader_idx_1"]


def test_progress_without_a_terminal_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = [LocalizationMonitor(), InitialValidation(), ProgressLines()]
    make_trainer(tmp_path, callbacks, enable_progress_bar=True).fit(UserModule(), loader(8), loader())
    lines = [line for line in capsys.readouterr().out.splitlines() if "val/agcam/iou" in line]
    assert [line.split(":")[0] for line in lines] == ["validation before training", "epoch 1 of 1, validation"]


def test_the_command_line_does_without_it_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    saved = [f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.callbacks=null", "--trainer.max_epochs=1"]
    cli.train(ROOT / "configs" / "digits.yaml", [*SMALL_RUN, *saved, "--initial_validation=false"])
    assert [row["epoch"] for row in history_of(tmp_path / "digits" / "version_0")] == ["1.0"]


def test_the_table_fits_80_columns_and_has_the_numbers_before_the_training() -> None:
    metrics = ("iou", "mask_iou", "pointing_game", "energy_inside", "abpc")
    rows = [
        {"epoch": epoch, "step": 10 * epoch, "val/accuracy": 0.1 + epoch / 10}
        | {f"val/{method}/{metric}": 0.2 + epoch / 10 for method in ("agcam", "center", "random") for metric in metrics}
        for epoch in (0.0, 1.0, 2.0, 3.0)
    ]
    printed = io.StringIO()
    Console(file=printed, width=80).print(summary_table(rows))
    lines = printed.getvalue().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    [pointing] = [line for line in lines if "agcam: pointing game" in line]
    assert [cell.strip() for cell in pointing.split("│")[2:-1]] == ["0.200", "0.300", "0.500", "0.500", "0.500"]
    heading = " ".join(" ".join(line.replace("┃", " ").split()) for line in lines[2:4])
    assert all(word in heading for word in ("before", "training", "first", "last", "center", "random"))
