"""RunSummary: the table at the end of a fit, beside the scalars that were logged."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_cases import History, UserModule, digits, loader, make_trainer, tiny_classifier

from litcam.callbacks import LocalizationMonitor, RelianceMonitor, RunSummary, StepSeed


def printed_rows(printed: str) -> dict[str, list[str]]:
    """The cells of each row of the table, without those that are empty."""
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in printed.splitlines()]
    return {row[0]: [cell for cell in row[1:] if cell] for row in rows if row}


def test_the_table_has_the_reliance_of_every_protocol_in_the_first_and_the_last_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    history = History()
    watched: list[Any] = [RelianceMonitor(), RelianceMonitor("masks"), RelianceMonitor(fill="blur")]
    watched += [RelianceMonitor("masks", "mean"), LocalizationMonitor(), LocalizationMonitor("center")]
    trainer = make_trainer(tmp_path, [*watched, history, RunSummary()], max_epochs=2)
    trainer.fit(tiny_classifier(lr=0.05), digits())
    rows = printed_rows(capsys.readouterr().out)
    first, last = history.scalars
    parts = ("object", "background")
    for prefix, protocol in (("", ""), ("mask_", " (masks)"), ("blur_", " (blur)"), ("mask_mean_", " (masks, mean)")):
        for part in parts:
            expected = [f"{epoch[f'val/reliance/{prefix}accuracy_{part}']:.3f}" for epoch in (first, last)]
            assert rows.pop(f"accuracy on the {part} alone{protocol}") == expected
    assert rows["accuracy"] == [f"{epoch['val/accuracy']:.3f}" for epoch in (first, last)]
    assert rows["agcam: IoU with the boxes"][2] == f"{last['val/center/iou']:.3f}", "the control's"
    assert not [title for title in rows if "alone" in title]
    cells = [cell for name, cell in last.items() if re.search("reliance/.*accuracy_(object|background)$", name)]
    assert len({f"{cell:.3f}" for cell in cells}) > 1, "equal cells would hide a mix-up"


def test_a_run_without_reliance_has_no_such_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(tmp_path, [LocalizationMonitor(), RunSummary()]).fit(UserModule(), loader(8), loader())
    printed = capsys.readouterr().out
    assert "agcam: IoU with the boxes" in printed
    assert "alone" not in printed


def test_a_resumed_fit_has_the_rows_and_the_table_of_the_uninterrupted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(folder: Path, ckpt_path: Path | None = None) -> tuple[str, list[dict[str, str]]]:
        saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, auto_insert_metric_name=False)
        callbacks = [StepSeed(), LocalizationMonitor(), RunSummary(), saver]
        trainer = make_trainer(folder, callbacks, tensorboard=True, max_epochs=3, enable_checkpointing=True)
        trainer.fit(tiny_classifier(lr=0.01), digits(), ckpt_path=ckpt_path, weights_only=True)
        rows = list(csv.DictReader((folder / "run" / "history.csv").open()))
        validations = [{name: value for name, value in row.items() if "train/" not in name} for row in rows]
        return capsys.readouterr().out.split("The run lies in")[0], validations

    table, history = fit(tmp_path / "first")
    assert [(row["epoch"], row["step"]) for row in history] == [("1.0", "2.0"), ("2.0", "4.0"), ("3.0", "6.0")]
    assert fit(tmp_path / "second", tmp_path / "4.ckpt") == (table, history), "in a folder of its own"
    assert fit(tmp_path / "first", tmp_path / "2.ckpt") == (table, history), "later rows of the first run are gone"
