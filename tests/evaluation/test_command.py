"""evaluate.py as a user types it: several checkpoints, killed and started again, other data, the report."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli_cases import ENVIRONMENT, ROOT, command
from litcam import cli
from litcam.errors import CheckpointError, InputError
from litcam.evaluation.command import evaluate_runs
from litcam.evaluation.runs import find_checkpoints


def results_of(folder: Path) -> Any:
    return json.loads((folder / "results.json").read_text())


def test_a_killed_evaluation_goes_on_and_ends_in_the_same_bits(run: tuple[Path, str], tmp_path: Path) -> None:
    checkpoint = str(run[0] / "checkpoints" / "last.ckpt")
    words = ["--ckpt_path", checkpoint, "--methods", "agcam", "relevance", "--metrics", "localization", "perturbation"]
    words += ["--data.num_val=80", "--data.batch_size=4", "--perturbation_images=null", "--report_images=4"]
    whole = command("evaluate.py", *words, "--output", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    arguments = [sys.executable, str(ROOT / "evaluate.py"), *words, "--output", str(tmp_path / "killed")]
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parts = tmp_path / "killed" / "parts"
    deadline = time.monotonic() + 200
    while len(list(parts.glob("0*.npz"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    measured = len(list(parts.glob("0*.npz")))
    assert 3 <= measured < 20
    assert not (tmp_path / "killed" / "results.json").exists()
    again = command("evaluate.py", *words, "--output", str(tmp_path / "killed"))
    assert again.returncode == 0, again.stderr
    for name in ("results.json", "results.csv", "images.csv", "images.parquet", "classes.csv", "report.html"):
        first, second = (tmp_path / folder / name for folder in ("whole", "killed"))
        if name == "report.html":  # it shows what the methods cost, which is never the same
            assert second.stat().st_size == pytest.approx(first.stat().st_size, rel=0.01)
        else:
            assert first.read_bytes() == second.read_bytes(), name


def test_a_run_folder_is_compared_checkpoint_by_checkpoint(run: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0] / "checkpoints", folder / "checkpoints")
    steps = {}
    for file in sorted((folder / "checkpoints").glob("*.ckpt")):
        steps.setdefault(torch.load(file, weights_only=True)["global_step"], file.stem)
    names = [steps[step] for step in sorted(steps)]
    assert len(names) >= 2
    finished = command(
        *("evaluate.py", "--ckpt_path", str(folder), "--methods", "agcam", "center", "--metrics", "localization"),
        *("--output", str(tmp_path / "out")),
    )
    assert finished.returncode == 0, finished.stderr
    folders = [tmp_path / "out" / f"{place}-{name}" for place, name in enumerate(names)]
    first, second = (results_of(folder) for folder in folders[:2])
    assert first["checkpoint"].endswith(f"{names[0]}.ckpt")
    assert first["methods"]["agcam"]["iou"] != second["methods"]["agcam"]["iou"]
    assert first["methods"]["center"]["iou"] == second["methods"]["center"]["iou"]
    maps = [
        np.concatenate([np.load(part)["0.maps"] for part in sorted((folder / "parts").glob("0*.npz"))]).astype(float)
        for folder in folders[:2]
    ]
    correlation = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(*maps, strict=True)])
    iou = np.mean([((a > 0.5) & (b > 0.5)).sum() / ((a > 0.5) | (b > 0.5)).sum() for a, b in zip(*maps, strict=True)])
    drift = list(csv.DictReader((tmp_path / "out" / "drift.csv").open()))
    assert (drift[0]["method"], drift[0]["from"], drift[0]["to"]) == ("agcam", *names[:2])
    assert float(drift[0]["correlation"]) == pytest.approx(correlation, abs=1e-6)
    assert float(drift[0]["iou"]) == pytest.approx(iou, abs=1e-6)
    of_center = next(row for row in drift if row["method"] == "center")
    assert (float(of_center["correlation"]), float(of_center["iou"])) == (pytest.approx(1), 1)
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (folders[0] / "report.html").exists()
    assert all(name in finished.stdout for name in names)


def test_checkpoints_of_a_folder_come_in_the_order_of_their_steps(run: tuple[Path, str], tmp_path: Path) -> None:
    source = torch.load(run[0] / "checkpoints" / "last.ckpt", weights_only=True)
    for name, step in (("b", 20), ("a", 100), ("same", 100), ("z", 3)):
        torch.save({**source, "global_step": step}, tmp_path / f"{name}.ckpt")
    assert [path.stem for path in find_checkpoints([tmp_path])] == ["z", "b", "a"]
    assert find_checkpoints([tmp_path / "same.ckpt"]) == [tmp_path / "same.ckpt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"There is no checkpoint in .*empty"):
        find_checkpoints([tmp_path / "empty"])


def test_other_data_are_taken_by_their_class_path(run: tuple[Path, str], tmp_path: Path) -> None:
    [found] = evaluate_runs(
        [run[0] / "checkpoints" / "last.ckpt"],
        data={"class_path": "litcam.data.DigitScenesDataModule", "num_val": 6, "seed": 9, "num_workers": 0},
        methods=["center"],
        metrics=["localization"],
        output=tmp_path,
    )
    assert found.results["num_images"] == 6
    assert found.results["data"]["seed"] == 9


def test_without_a_checkpoint_the_model_and_its_data_are_named(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: {model: vit_mini_patch8_64, num_classes: 10}\n"
        "data: {class_path: litcam.data.DigitScenesDataModule, num_val: 12, num_workers: 0}\n"
        "methods: [agcam]\nmetrics: [localization]\nsplit: test\n"
    )
    cli.evaluate(["--config", str(config), "--data.num_test=5", f"--output={tmp_path / 'out'}"])
    results = results_of(tmp_path / "out")
    assert (results["checkpoint"], results["model"]) == (None, "vit_mini_patch8_64")
    assert (results["split"], results["num_images"]) == ("test", 5)
    with pytest.raises(InputError, match="ViTClassifier has no argument 'modle'"):
        evaluate_runs(model={"modle": "x"}, data={"class_path": "litcam.data.DigitScenesDataModule"})
    with pytest.raises(InputError, match="There is no data module None"):
        evaluate_runs(model={"model": "vit_mini_patch8_64"})


def test_an_output_folder_that_cannot_be_written_is_named(run: tuple[Path, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        evaluate_runs([run[0] / "checkpoints" / "last.ckpt"], output=tmp_path / "file" / "out")


def test_a_wrong_key_of_a_config_fails_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("method: [agcam]\n")
    with pytest.raises(SystemExit) as stop:
        cli.evaluate(["--config", str(config)])
    assert stop.value.code == 2
    assert "method" in capsys.readouterr().err
