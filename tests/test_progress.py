"""Progress where there is no terminal: lines that say what is done, how fast, and how long the rest takes."""

import re
import time
from pathlib import Path

import lightning as L
import pytest

import litcam.progress
from cli_cases import train
from litcam.callbacks import ProgressLines
from litcam.callbacks.progress_bars import MetricsBar, default_bar
from litcam.classifier import ViTClassifier
from litcam.cli import evaluate
from litcam.data import DigitScenesDataModule
from litcam.progress import Pace, duration, progress, track


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (302, "5 min 2 s"), (12_000, "3 h 20 min")]
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_pace_counts_what_was_done_since_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace(2000, done=1000)
    now += 10
    assert pace.line("images") == "1,000 of 2,000 images after 10 s"
    pace.done += 200
    assert pace.line("images") == "1,200 of 2,000 images, 20.0 images/s, 40 s left"
    endless = Pace(float("inf"))
    endless.done, now = 8, now + 4
    assert endless.line("batches") == "8 batches, 2.0 batches/s"


def test_lines_come_while_the_first_batch_is_still_at_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(litcam.progress, "EVERY", 0.02)
    printed = ""
    with progress("agcam", 8) as advance:
        while "agcam: 0 of 8 images after" not in printed:  # nothing is done yet
            time.sleep(0.01)
            printed += capsys.readouterr().err
        advance(4)
        while "agcam: 4 of 8 images, " not in printed:
            time.sleep(0.01)
            printed += capsys.readouterr().err
    assert list(track("abc", "letters", 3)) == ["a", "b", "c"]
    time.sleep(0.05)
    assert "letters: 3 of 3" not in capsys.readouterr().err  # it is over, and so are its lines
    assert "\x1b" not in printed


def test_an_evaluation_without_a_terminal_tells_how_far_it_is(
    run: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(litcam.progress, "EVERY", 0.01)
    checkpoint = run[0] / "checkpoints" / "last.ckpt"
    evaluate(["--ckpt_path", str(checkpoint), "--methods", "agcam", "random", "--output", str(tmp_path)])
    line = r"agcam, random: \d+ of 21 images(, [\d.]+ images/s, \d+ s left| after \d+ s)"
    assert re.search(line, capsys.readouterr().err)


def test_a_training_without_a_terminal_prints_lines_and_no_version_as_a_metric(tmp_path: Path) -> None:
    folder = tmp_path / "[bold] runs"  # a name, and no markup
    finished = train(folder, "--trainer.max_epochs=1", "--trainer.callbacks=[]")
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"^epoch 1 of 1, validation: .*val/accuracy \d", finished.stdout, re.MULTILINE)
    assert f"The run lies in {folder / 'digits' / 'version_0'}. Next:" in finished.stdout
    assert "v_num" not in finished.stdout + finished.stderr
    assert "by place" not in finished.stdout + finished.stderr  # a new model takes the names of its data
    assert "\x1b" not in finished.stdout


def test_what_a_module_prints_goes_beside_the_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Speaker(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            pl_module.print("the alarm speaks")

    bar = ProgressLines(seconds=60)
    trainer = L.Trainer(accelerator="cpu", callbacks=[Speaker(), bar], logger=False, enable_model_summary=False)
    data = DigitScenesDataModule(num_val=4, num_workers=0)
    trainer.validate(ViTClassifier("vit_mini_patch8_64", 10), data, verbose=False)
    spoken, line = capsys.readouterr().out.splitlines()
    assert spoken == "the alarm speaks"
    assert line.startswith("validation: val/accuracy ")
    bar.disable()
    assert not bar.is_enabled


def test_a_terminal_has_lightnings_bar_without_the_version() -> None:
    assert isinstance(default_bar(is_terminal=True), MetricsBar)
