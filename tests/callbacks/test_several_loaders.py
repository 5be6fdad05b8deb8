"""Several evaluation loaders: each has its own numbers, and the first keeps the plain names."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning_cases import (
    assert_logged,
    localization_by_hand,
    logged,
    make_trainer,
    perturbation_by_hand,
    tiny_classifier,
    with_tag,
)
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from litcam.callbacks import DriftMonitor, HeatmapLogger, LocalizationMonitor, PerturbationMonitor, RunSummary
from litcam.callbacks.progress_bars import ProgressLines
from litcam.callbacks.run_summary import summary_table
from litcam.data import DigitScenesDataModule


class TwoLoaders(DigitScenesDataModule):
    """Its evaluations have the images of both splits, one after the other."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(8, 11, 7, batch_size=4, num_workers=0, **arguments)

    def val_dataloader(self) -> Any:
        return [self.evaluation_dataloader("val"), self.evaluation_dataloader("test")]

    def test_dataloader(self) -> Any:
        return [self.evaluation_dataloader("test"), self.evaluation_dataloader("val")]

    def batches(self, split: Any) -> list[Any]:
        return [self.normalize(batch) for batch in self.evaluation_dataloader(split)]


def by_hand(module: Any, batches: list[Any]) -> Mapping[str, float]:
    """Loss and accuracies of one loader."""
    with torch.no_grad():
        logits = torch.cat([module.net.eval()(batch["image"]) for batch in batches])
    labels = torch.cat([batch["label"] for batch in batches])
    top5 = (logits.topk(5).indices == labels[:, None]).any(1)
    right = (logits.argmax(1) == labels).float().mean()
    return {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": right.item(),
        "accuracy_top5": top5.float().mean().item(),
    }


def of_second(scores: Mapping[str, float], stage: str) -> dict[str, float]:
    return {f"{stage}/{name}/dataloader_idx_1": value for name, value in scores.items()}


def test_each_loader_has_its_own_numbers_and_the_monitors_those_of_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, data = tiny_classifier(lr=1e-3), TwoLoaders()
    best = ModelCheckpoint(tmp_path, "best", "val/accuracy/dataloader_idx_1", mode="max")
    watching = [EarlyStopping("val/loss", strict=True), best, RunSummary(), ProgressLines()]
    monitors: list[L.Callback] = [
        LocalizationMonitor(),
        PerturbationMonitor(num_images=None),
        HeatmapLogger(num_images=2),
    ]
    monitors.append(DriftMonitor())
    options: dict[str, Any] = {"max_epochs": 2, "enable_checkpointing": True, "enable_progress_bar": True}
    trainer = make_trainer(tmp_path, [*monitors, *watching], **options)
    trainer.validate(module, data, verbose=False)  # in inference mode, before the fit
    trainer.fit(module, data)
    first, second = data.batches("val"), data.batches("test")
    expected = with_tag("val/", dict(by_hand(module, first))) | of_second(by_hand(module, second), "val")
    maps = localization_by_hand(module.net, first) | perturbation_by_hand(module.net, first)
    assert_logged(logged(trainer), expected | with_tag("val/agcam/", maps), tolerance=1e-5)
    assert "val/accuracy/dataloader_idx_0" not in logged(trainer)
    assert best.best_model_path
    [row] = [row for row in csv.DictReader((tmp_path / "history.csv").open()) if row["epoch"] == "2.0"]
    assert float(row["val/loss/dataloader_idx_1"]) == pytest.approx(expected["val/loss/dataloader_idx_1"])
    printed = capsys.readouterr().out
    assert "accuracy (dataloader 1)" in printed
    assert "val/accuracy/dataloader_idx_1 " in printed
    trainer.test(module, data, verbose=False)
    expected = with_tag("test/", dict(by_hand(module, second))) | of_second(by_hand(module, first), "test")
    assert_logged(logged(trainer), expected, tolerance=1e-5)


def test_lightnings_own_table_has_a_column_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, data = tiny_classifier(), TwoLoaders()
    tables = make_trainer(tmp_path, []).validate(module, data)
    expected = by_hand(module, data.batches("val")), by_hand(module, data.batches("test"))
    assert tables[0]["val/accuracy"] == pytest.approx(expected[0]["accuracy"])
    assert tables[1]["val/accuracy/dataloader_idx_1"] == pytest.approx(expected[1]["accuracy"])
    printed = capsys.readouterr().out
    assert "DataLoader 0" in printed
    assert "DataLoader 1" in printed


def test_multi_label_precision_is_that_of_each_loader(tmp_path: Path) -> None:
    module, data = tiny_classifier(multi_label=True), TwoLoaders(classes=2)
    trainer = make_trainer(tmp_path, [LocalizationMonitor()])
    trainer.validate(module, data, verbose=False)
    for split, name in (("val", "val/map"), ("test", "val/map/dataloader_idx_1")):
        batches = data.batches(split)
        with torch.no_grad():
            logits = torch.cat([module.net(batch["image"]) for batch in batches])
        labels = torch.cat([batch["label"] for batch in batches])
        found = [average_precision_score(labels[:, c], logits[:, c]) for c in range(10) if labels[:, c].any()]
        assert logged(trainer)[name] == pytest.approx(sum(found) / len(found), abs=1e-5)


def test_a_fit_after_a_validation_counts_anew(tmp_path: Path) -> None:
    """Whatever a validation leaves in inference mode cannot be written to in a fit."""
    data = DigitScenesDataModule(8, 11, 7, batch_size=4, num_workers=0)
    trainer, module = make_trainer(tmp_path, []), tiny_classifier(lr=0.0)
    trainer.validate(module, data, verbose=False)
    before = logged(trainer)
    trainer.fit(module, data)
    assert logged(trainer)["val/loss"] == pytest.approx(before["val/loss"])


def test_the_table_of_a_run_names_the_further_loaders() -> None:
    row = {"epoch": 1.0, "step": 2.0, "val/accuracy": 0.5, "val/accuracy/dataloader_idx_1": 0.25}
    assert list(summary_table([row]).columns[0].cells) == ["accuracy", "accuracy (dataloader 1)"]


def test_a_loader_more_in_a_later_validation_is_counted_too(tmp_path: Path) -> None:
    module, data, trainer = tiny_classifier(), TwoLoaders(), make_trainer(tmp_path, [])
    trainer.validate(module, DigitScenesDataModule(8, 11, 7, batch_size=4, num_workers=0), verbose=False)
    trainer.validate(module, data, verbose=False)
    assert_logged(logged(trainer), of_second(by_hand(module, data.batches("test")), "val"), tolerance=1e-5)
    trainer.validate(module, DigitScenesDataModule(8, 11, 7, batch_size=4, num_workers=0), verbose=False)
    assert_logged(logged(trainer), with_tag("val/", dict(by_hand(module, data.batches("val")))), tolerance=1e-5)
