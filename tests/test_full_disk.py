"""A disk that takes no more: one sentence with the file's name, and what stands under a checkpoint's name is whole."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli_cases import ENVIRONMENT, ROOT, SMALL_RUN, full_at
from litcam import cli
from litcam.checkpoints import WholeCheckpointIO

LEAN = [  # a checkpoint is the only large file
    "--trainer.max_epochs=1",
    "--trainer.logger={class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: runs, name: digits}}",
    "--trainer.callbacks=[{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {filename: last}}]",
]


def test_a_disk_that_fills_at_a_checkpoint_ends_the_training_in_one_sentence(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *SMALL_RUN, *LEAN],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=tmp_path,
        timeout=300,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert "error: runs/digits/version_0/checkpoints/last.ckpt could not be written (File too large): make" in (
        finished.stderr
    )
    assert list((tmp_path / "runs" / "digits" / "version_0" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(("size", "file"), [(1_000, "runs"), (60_000, "runs/digits/version_0/heatmaps/agcam/")])
def test_so_do_logs_and_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], size: int, file: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--trainer.logger.init_args.save_dir=runs", "--trainer.max_epochs=1", *SMALL_RUN]
    with full_at(size), pytest.raises(SystemExit) as stop:
        cli.train(ROOT / "configs" / "digits.yaml", arguments)
    printed = capfd.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in printed  # nor from TensorBoard's thread
    assert printed.splitlines()[-1].startswith(f"error: {file}")
    assert "could not be written (File too large)" in printed


def test_the_older_checkpoint_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))  # on another disk it would have to be copied
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"epoch": 1, "weight": torch.zeros(10)}, path)
    with full_at(50_000), pytest.raises(OSError, match="File too large") as stop:
        WholeCheckpointIO().save_checkpoint({"epoch": 2, "weight": torch.zeros(100_000)}, path)
    assert stop.value.filename == str(path)
    assert torch.load(path, weights_only=True)["epoch"] == 1
    assert list(path.parent.iterdir()) == [path]
    WholeCheckpointIO().save_checkpoint({"epoch": 3}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 3}
