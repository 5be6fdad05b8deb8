"""The folder of an evaluation: one at a time has it, and a disk that takes no more is one sentence."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli_cases import ENVIRONMENT, ROOT, full_at
from litcam import cli
from litcam.lock import LOCK_NAME, only_writer

SCORED = ["--methods", "center", "--metrics", "localization", "--report_images=2"]


def checkpoint_of(run: tuple[Path, str]) -> str:
    return str(run[0] / "checkpoints" / "last.ckpt")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.evaluate(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return next(line for line in error.splitlines() if line.startswith("error: "))


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 200
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_two_evaluations_into_one_folder_are_one_and_the_other_is_told_who_has_it(
    run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--ckpt_path", checkpoint_of(run), "--output", str(tmp_path / "out"), "--data.batch_size=4"]
    slow = ["--methods", "agcam", "relevance", "--data.num_val=160", "--perturbation_images=null"]
    first = subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *words, *slow],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parts = tmp_path / "out" / "parts"
    wait_for(lambda: len(list(parts.glob("0*.npz"))) >= 2)
    for other in (slow, [*SCORED, "--data.num_val=160"]):  # of the same plan, and of another
        error = refused([*words, *other], capsys)
        assert f"{tmp_path / 'out'} is being written by process {first.pid} on " in error
        assert "wait for it, or name another folder: --output." in error
    assert len(list(parts.glob("0*.npz"))) >= 2
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / "out" / LOCK_NAME).exists()
    cli.evaluate([*words, *SCORED, "--data.num_val=20"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["num_images"] == 20
    assert len(list(parts.glob("0*.npz"))) == 5
    left = {path.name for path in [*(tmp_path / "out").iterdir(), *parts.iterdir()]}
    assert not [name for name in left if name == LOCK_NAME or "partial" in name]


def test_a_folder_in_use_is_refused_by_everything_that_writes_into_it(
    run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = checkpoint_of(run), tmp_path / "out"
    Image.fromarray(np.zeros((64, 64, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    own = ["--ckpt_path", checkpoint, "--output", str(out), "--images", str(tmp_path / "image.png")]
    several = ["--ckpt_path", str(run[0]), "--output", str(out), *SCORED]
    with only_writer(out):
        for words in (own, several, ["--ckpt_path", checkpoint, "--output", str(out), *SCORED]):
            assert f"error: {out} is being written by process" in refused(words, capsys)
        assert [path.name for path in out.iterdir()] == [LOCK_NAME]
    cli.evaluate(own)
    assert "image-agcam-" in " ".join(path.name for path in out.iterdir())


def test_checkpoints_of_one_name_are_told_apart_and_have_folders_of_their_own(
    run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name / "version_0" / "checkpoints" / "last.ckpt" for name in ("a", "b")]
    files.append(tmp_path / "a" / "version_0" / "older" / "last.ckpt")
    for file in files:
        file.parent.mkdir(parents=True)
        shutil.copy(checkpoint_of(run), file)
    words = ["--data.num_val=4", *SCORED, "--output", str(tmp_path / "out")]
    cli.evaluate(["--ckpt_path", *map(str, [files[0], files[1], files[0]]), *words])
    drift = (tmp_path / "out" / "drift.csv").read_text()
    assert "center,a/version_0/last,b/version_0/last," in drift
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["0-last", "1-last"]
    error = refused(["--ckpt_path", str(files[0]), str(files[2]), "--data.num_val=4", *SCORED], capsys)
    assert "and of another checkpoint would lie in" in error
    assert not (tmp_path / "a" / "version_0" / "evaluation").exists()


def test_a_disk_that_fills_while_images_are_explained_is_one_sentence(run: tuple[Path, str], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    finished = subprocess.run(
        [
            *(sys.executable, str(ROOT / "evaluate.py"), "--ckpt_path", checkpoint_of(run)),
            *("--images", str(tmp_path / "image.png"), "--output", str(tmp_path / "out")),
        ],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr
    assert f"error: {tmp_path / 'out' / 'image-agcam-'}" in finished.stderr
    assert ".png cannot be written (File too large); make room there and start again." in finished.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


@pytest.mark.parametrize(
    ("size", "file"),
    [(100, "parts/plan.json"), (1_600, "parts/000000.npz"), (4_000, "images.parquet"), (60_000, "report.html")],
)
def test_so_it_is_whatever_an_evaluation_writes_and_what_was_written_is_whole(
    run: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], size: int, file: str
) -> None:
    out = tmp_path / "out"
    words = ["--ckpt_path", checkpoint_of(run), "--output", str(out), "--num_images=8", "--data.batch_size=4", *SCORED]
    with full_at(size):
        error = refused(words, capsys)
    assert error == f"error: {out / file} cannot be written (File too large); make room there and start again."
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert file not in names
    assert not [name for name in names if "partial" in name or LOCK_NAME in name]
    for path in out.rglob("*.npz"):
        with np.load(path) as part:
            assert len(part["hits"]) == 4
    cli.evaluate(words)
    assert json.loads((out / "results.json").read_text())["num_images"] == 8
