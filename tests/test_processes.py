"""Several processes from the command line: the numbers and the files of one, and all end together."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cli_cases import ENVIRONMENT, ROOT, SMALL_RUN

TWO = ["--trainer.strategy=ddp", "--trainer.devices=2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
CALLBACKS: list[tuple[str, dict[str, Any]]] = [  # everything that a config can watch
    ("litcam.callbacks.HeatmapLogger", {"num_images": 5}),
    ("litcam.callbacks.LocalizationMonitor", {}),
    ("litcam.callbacks.LocalizationMonitor", {"regions": "masks", "target": "predicted"}),
    ("litcam.callbacks.LocalizationMonitor", {"explainer": "center", "num_images": 1}),
    ("litcam.callbacks.PerturbationMonitor", {"num_images": 5}),
    ("litcam.callbacks.RelianceMonitor", {}),
    ("litcam.callbacks.RelianceMonitor", {"regions": "masks", "num_images": 9}),
    ("litcam.callbacks.ShortcutAlarm", {"calibration": None}),
    ("litcam.callbacks.DriftMonitor", {"num_images": 9}),
    ("litcam.callbacks.LocalizedCheckpoint", {"monitor": "val/agcam/iou"}),
    ("lightning.pytorch.callbacks.ModelCheckpoint", {"filename": "last", "enable_version_counter": False}),
]
CONFIG = {
    "model": {"model": "vit_mini_patch8_64", "num_classes": 10, "lr": 0.0},  # knows the digits already, and stays
    "data": {
        "class_path": "litcam.data.DigitScenesDataModule",
        "init_args": {"num_train": 32, "num_val": 21, "num_test": 8, "num_workers": 0},
    },
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "logger": {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": "runs", "name": "all", "default_hp_metric": False},
        },
        "callbacks": [{"class_path": name, "init_args": options} for name, options in CALLBACKS],
    },
}


def start(folder: Path, arguments: Sequence[str], launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start train.py in a folder, as the leader of a group of processes."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train.py"), *arguments],
        cwd=folder,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """What it printed until it ended, and with it all that it had started."""
    try:
        printed = process.communicate(timeout=seconds)[0]
        deadline = time.monotonic() + 30
        while in_group(process.pid):  # until the system has buried it
            assert time.monotonic() < deadline, f"a process was left behind:\n{printed}"
            time.sleep(0.05)
        return printed
    finally:
        if in_group(process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def in_group(leader: int) -> bool:
    """Whether a group has any process."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


# The numbers and the files.


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders in which one process ran, two of Lightning's and two of torchrun's, with as many images per step."""
    folders = {}
    for name, arguments, launcher in (
        ("one", ["--data.batch_size=16"], []),
        ("lightning", [*TWO, "--data.batch_size=8"], []),
        ("torchrun", [*TWO, "--data.batch_size=8"], TORCHRUN),
    ):
        folder = folders[name] = tmp_path_factory.mktemp(name)
        (folder / "all.yaml").write_text(yaml.safe_dump(CONFIG))
        process = start(folder, ["--config=all.yaml", *arguments], launcher)
        printed = finish(process)
        assert process.returncode == 0, printed
    return folders


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs" / "all" / "version_0" / "history.csv").open() as file:
        return list(csv.DictReader(file))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows, by tag."""
    events = EventAccumulator(str(folder / "runs" / "all" / "version_0"), size_guidance={"scalars": 0}).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def tolerance(name: str) -> float:
    """Pixels whose map differs in the last bit, as in batches of other sizes, change their order."""
    return 2e-3 if any(curve in name for curve in ("lerf", "morf", "abpc")) else 1e-6


@pytest.mark.parametrize("name", ["lightning", "torchrun"])
def test_two_processes_log_the_numbers_of_one(runs: dict[str, Path], name: str) -> None:
    expected, actual = history(runs["one"]), history(runs[name])
    assert len(expected) == len(actual) == 2  # the first is from before the training
    for alone, together in zip(expected, actual, strict=True):
        assert alone.keys() == together.keys()
        for column, value in alone.items():
            numbers = [float(number or "nan") for number in (value, together[column])]
            assert numbers[1] == pytest.approx(numbers[0], abs=tolerance(column), nan_ok=True), column
    wanted = {"val/loss", "train/loss", "val/agcam/alarm/relative_foreground_sensitivity", "val/agcam/drift/gini"}
    assert wanted <= expected[-1].keys()
    assert 0 < float(expected[0]["val/accuracy"]) < 1, "else nothing could differ"


@pytest.mark.parametrize("name", ["lightning", "torchrun"])
def test_tensorboard_shows_of_two_processes_what_it_shows_of_one(runs: dict[str, Path], name: str) -> None:
    expected, actual = scalars(runs["one"]), scalars(runs[name])
    assert expected.keys() == actual.keys()
    assert (len(expected["train/loss"]), len(expected["train/accuracy"])) == (2, 1)
    for tag, points in expected.items():
        steps, values = zip(*points, strict=True)
        assert [step for step, _ in actual[tag]] == list(steps)
        found = [value for _, value in actual[tag]]
        assert found == pytest.approx(values, abs=tolerance(tag), nan_ok=True), tag


@pytest.mark.parametrize("name", ["lightning", "torchrun"])
def test_two_processes_write_the_files_of_one_once(runs: dict[str, Path], name: str) -> None:
    def files(folder: Path) -> list[str]:
        found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        return sorted("events" if "tfevents" in path else path for path in found)

    assert files(runs[name]) == files(runs["one"])
    assert {path.name for path in (runs[name] / "runs" / "all").iterdir()} == {"version_0"}
    config = yaml.safe_load((runs[name] / "runs" / "all" / "version_0" / "config.yaml").read_text())
    assert config["trainer"]["devices"] == "2"
    assert config["data"]["init_args"]["num_val"] == 21


# The end.


@pytest.mark.parametrize(
    ("number", "arguments", "status", "word"),
    [
        (signal.SIGINT, TWO, 1, "Interrupted"),
        (signal.SIGTERM, TWO, 143, "Terminated"),
        (signal.SIGTERM, [], 143, "Terminated"),
    ],
)
def test_a_signal_ends_all_processes_and_the_first_says_how_to_resume(
    tmp_path: Path, number: signal.Signals, arguments: list[str], status: int, word: str
) -> None:
    process = start(tmp_path, [*SMALL_RUN, "--trainer.max_epochs=99", *arguments])
    last = tmp_path / "runs" / "digits" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 240
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    printed = finish(process, seconds=120)
    assert process.returncode == status, printed
    assert printed.count(f"{word}. To resume:") == 1
    assert printed.count("--ckpt_path runs/digits/version_0/checkpoints/last.ckpt") == 1
    assert "Traceback" not in printed


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Images of which the second process cannot read one."""
    for number, split in enumerate(["train", "train", "train", "train", "val", "val", "val", "val"]):
        (tmp_path / split / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = np.full((40, 40, 3), number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / split / "ab"[number % 2] / f"{number}.png")
    (tmp_path / "val" / "a" / "6.png").write_text("no image")
    return tmp_path


def test_what_only_the_second_process_finds_ends_both_in_one_sentence(broken: Path) -> None:
    watched = ["--trainer.callbacks=litcam.callbacks.HeatmapLogger"]
    data = ["--data=litcam.data.FolderDataModule", f"--data.root={broken}", "--data.batch_size=1"]
    process = start(broken, [*SMALL_RUN[:2], *SMALL_RUN[-3:], "--model.num_classes=2", *data, *watched, *TWO])
    printed = finish(process)
    assert process.returncode not in (0, None)
    assert [line.startswith("error: ") for line in printed.splitlines()].count(True) == 1, printed
    assert "6.png" in printed
    assert "Traceback" not in printed


# The start.


def test_processes_are_started_from_the_trainings_own_command_line_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from litcam import cli

    command_line = list(sys.argv)
    with pytest.raises(SystemExit) as stop:
        cli.train(
            ROOT / "configs" / "digits.yaml", [*SMALL_RUN, *TWO, f"--trainer.logger.init_args.save_dir={tmp_path}"]
        )
    assert stop.value.code == 2
    assert "2 processes cannot be started from here: each would run" in capsys.readouterr().err
    assert sys.argv == command_line


def test_a_number_of_processes_that_is_not_the_trainers_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from litcam import cli

    launched = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    launched |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        cli.train(
            ROOT / "configs" / "digits.yaml",
            [*SMALL_RUN, "--trainer.strategy=ddp", f"--trainer.logger.init_args.save_dir={tmp_path}"],
        )
    assert stop.value.code == 2
    assert "does not match the world size (2)" in capsys.readouterr().err


def test_a_wrong_key_is_told_once_and_before_any_process_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from litcam import cli

    monkeypatch.setattr(sys, "argv", ["train.py", *SMALL_RUN, *TWO, "--model.learning_rate=1"])
    with pytest.raises(SystemExit) as stop:
        cli.train(ROOT / "configs" / "digits.yaml")
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("learning_rate") == 1
