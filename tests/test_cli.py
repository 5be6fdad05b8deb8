"""The real command lines: a run from nothing to results, and every user error ends in one sentence."""

import csv
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cli_cases import ENVIRONMENT, ROOT, SMALL_RUN, command, train


@pytest.fixture(autouse=True)
def closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's log handler keeps the stream that an earlier test captured."""
    monkeypatch.setattr(logging, "raiseExceptions", False)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(checkpoint, weights_only=True)["state_dict"])


def test_a_run_leaves_everything_in_its_folder(run: tuple[Path, str]) -> None:
    folder, _ = run
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {"config.yaml", "history.csv", *(f"heatmaps/agcam/epoch_00{epoch}.png" for epoch in range(4))}
    assert expected | {f"checkpoints/{name}.ckpt" for name in ("best", "best_iou", "last")} <= names
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["init_args"]["num_train"] == 48
    assert config["model"]["model"] == "vit_mini_patch8_64"


def test_the_history_has_every_epoch_and_every_scalar(run: tuple[Path, str]) -> None:
    rows = list(csv.DictReader((run[0] / "history.csv").open()))
    assert [(row["epoch"], row["step"]) for row in rows] == [
        ("0.0", "0.0"),
        ("1.0", "3.0"),
        ("2.0", "6.0"),
        ("3.0", "9.0"),
    ]
    wanted = ["val/accuracy", "val/loss", "val/agcam/abpc"]
    wanted += [
        f"val/{name}/{metric}"
        for name in ("agcam", "center", "random")
        for metric in ("iou", "pointing_game", "energy_inside")
    ]
    assert all(0 <= abs(float(row[name])) < 10 for row in rows for name in wanted)


def test_the_end_of_a_run_says_what_it_reached_and_what_comes_next(run: tuple[Path, str]) -> None:
    folder, printed = run
    for text in (
        "before training",
        "first epoch",
        "last epoch",
        "center",
        "accuracy",
        "agcam: pointing game",
        f"The run lies in {folder}",
    ):
        assert text in printed
    assert f"tensorboard --logdir {folder.parent}" in printed
    assert f"python evaluate.py --ckpt_path {folder / 'checkpoints' / 'best.ckpt'}" in printed


def test_the_best_checkpoints_are_those_of_the_best_epochs(run: tuple[Path, str]) -> None:
    rows = list(csv.DictReader((run[0] / "history.csv").open()))
    for name, scalar in (("best", "val/accuracy"), ("best_iou", "val/agcam/iou")):
        step = torch.load(run[0] / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]
        trained = {float(row["step"]): float(row[scalar]) for row in rows if float(row["step"]) > 0}
        assert trained[step] == max(trained.values())


def test_evaluate_needs_the_checkpoint_alone(run: tuple[Path, str]) -> None:
    folder, _ = run
    finished = command(
        "evaluate.py", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--methods", "agcam", "center"
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads((folder / "evaluation" / "last-val" / "results.json").read_text())
    assert set(results["methods"]) == {"agcam", "center"}
    last = list(csv.DictReader((folder / "history.csv").open()))[-1]
    assert results["accuracy"] == pytest.approx(float(last["val/accuracy"]), abs=1e-6)
    for metric in ("iou", "pointing_game", "mask_iou", "abpc"):  # the same numbers as in the training
        entry = results["methods"]["agcam"][metric]
        assert entry["value"] == pytest.approx(float(last[f"val/agcam/{metric}"]), abs=1e-5)
        assert entry["low"] <= entry["value"] <= entry["high"]
    table = (folder / "evaluation" / "last-val" / "results.csv").read_text().splitlines()
    assert table[0] == "method,score,value,low,high,num_images,metric"
    assert "pointing game" in finished.stdout


def test_evaluate_tells_two_classes_apart_in_other_scenes_than_the_trainings(run: tuple[Path, str]) -> None:
    folder, _ = run
    finished = command(
        *("evaluate.py", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"), "--data.classes=2"),
        *("--data.num_val=20", "--methods", "reciprocam:kernel=dirac", "rollout", "--perturbation_images", "0"),
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads((folder / "evaluation" / "last-val-classes=2-num_val=20" / "results.json").read_text())
    assert results["num_images"] == 20
    assert results["data"] == {"classes": 2, "num_val": 20}
    assert results["methods"]["reciprocam:kernel=dirac"]["iou"]["num_images"] == 40
    assert results["methods"]["rollout"]["class_energy"]["value"] == pytest.approx(0.5)
    assert "class pointing" in finished.stdout


def interrupt(folder: Path) -> tuple[Path, str]:
    """Send Ctrl-C to a run as soon as it has a last checkpoint; give this and what the run printed."""
    arguments = [*SMALL_RUN, f"--trainer.logger.init_args.save_dir={folder}", "--trainer.max_epochs=3"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    last = folder / "digits" / "version_0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 240
    while not last.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    return last, process.communicate(timeout=120)[0]


def test_ctrl_c_keeps_the_last_checkpoint_and_resuming_ends_in_the_same_weights(
    run: tuple[Path, str], tmp_path: Path
) -> None:
    # Python drops a signal that comes while it runs a destructor, now and then: then the run goes on to its end.
    attempts = (interrupt(tmp_path / str(number)) for number in range(3))
    last, printed = next(((last, printed) for last, printed in attempts if "Interrupted" in printed), (tmp_path, ""))
    assert "Traceback" not in printed
    assert f"--ckpt_path {last}" in printed
    assert torch.load(last, weights_only=True)["epoch"] < 2  # the file is whole, and the run was not over
    resumed = train(tmp_path, "--trainer.max_epochs=3", f"--ckpt_path={last}")
    assert resumed.returncode == 0, resumed.stderr
    final = weights(tmp_path / "digits" / "version_0" / "checkpoints" / "last.ckpt")
    uninterrupted = weights(run[0] / "checkpoints" / "last.ckpt")
    assert final.keys() == uninterrupted.keys()
    assert all(torch.equal(value, uninterrupted[name]) for name, value in final.items())


def test_a_run_with_workers_resumes_in_the_middle_of_an_epoch_and_keeps_what_it_has_behind_it(
    run: tuple[Path, str], tmp_path: Path
) -> None:
    saver = "lightning.pytorch.callbacks.ModelCheckpoint"
    every_batch = [f"--trainer.callbacks+={saver}", "--trainer.callbacks.every_n_train_steps=1"]
    every_batch += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.filename=batch-{step}"]
    arguments = ["--trainer.max_epochs=3", "--data.num_workers=1"]
    started = train(tmp_path, *arguments, *every_batch)
    assert started.returncode == 0, started.stderr
    first = tmp_path / "digits" / "version_0" / "checkpoints"
    resumed = train(tmp_path, *arguments, f"--ckpt_path={first / 'batch-step=5.ckpt'}")
    assert resumed.returncode == 0, resumed.stderr
    assert "cause unreliable results" not in resumed.stderr
    folder = tmp_path / "digits" / "version_1"
    assert (folder / "history.csv").read_text() == (run[0] / "history.csv").read_text()
    tables = [re.findall(r"^validation *\n(.*)^The run", out, re.M | re.S) for out in (resumed.stdout, run[1])]
    assert len(tables[1]) == 1
    assert tables[0] == tables[1]
    for name in ("best", "best_iou", "last"):
        one, other = (torch.load(of / "checkpoints" / f"{name}.ckpt", weights_only=True) for of in (run[0], folder))
        assert one["epoch"] == other["epoch"], name
        assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items()), name


class Exploit:
    """A pickle that runs code when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("code-was-run",))


def damaged_checkpoints(folder: Path, good: Path) -> dict[str, tuple[Path, str]]:
    """Checkpoints that cannot be used, and what is to be said of them."""
    truncated, foreign, unsafe, text = (folder / f"{name}.ckpt" for name in ("truncated", "foreign", "unsafe", "text"))
    truncated.write_bytes(good.read_bytes()[:20_000])
    torch.save({"model": {"weight": torch.ones(1)}}, foreign)
    torch.save({"state_dict": {}, "hyper_parameters": Exploit()}, unsafe)
    text.write_text("not a checkpoint")
    return {
        "missing": (folder / "missing.ckpt", "There is no checkpoint"),
        "truncated": (truncated, "is damaged"),
        "foreign": (foreign, "was not written by a litcam run"),
        "unsafe": (unsafe, "could run code"),
        "text": (text, "damaged or not a checkpoint"),
    }


@pytest.mark.parametrize("kind", ["missing", "truncated", "foreign", "unsafe", "text"])
def test_unusable_checkpoints_end_in_one_sentence(
    run: tuple[Path, str],
    tmp_path: Path,
    kind: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from litcam import cli

    monkeypatch.chdir(tmp_path)
    path, message = damaged_checkpoints(tmp_path, run[0] / "checkpoints" / "last.ckpt")[kind]
    before = set(tmp_path.rglob("*"))
    for start in (
        lambda: cli.evaluate(["--ckpt_path", str(path)]),
        lambda: cli.train(
            ROOT / "configs" / "digits.yaml",
            [*SMALL_RUN, f"--trainer.logger.init_args.save_dir={tmp_path}/r", f"--ckpt_path={path}"],
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            start()
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert stop.value.code == 2
        assert error.startswith("error: ")
        assert message in error
    assert set(tmp_path.rglob("*")) == before  # nothing was run, nothing half-written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.learning_rate=1"], "learning_rate"),
        (["--model.lr=fast"], "model.lr"),
        (["--data.batch_size=0"], "batch_size is 0"),
        (["--model.model=resnet18", "--model.model_kwargs=null"], "resnet18 is a ResNet, not a Vision Transformer"),
        (["--model.model=swin_tiny_patch4_window7_224", "--model.model_kwargs=null"], "not a Vision Transformer"),
        (
            ["--trainer.callbacks=litcam.callbacks.HeatmapLogger", "--trainer.callbacks.explainer=grad"],
            "There is no explainer 'grad'",
        ),
        (["--trainer.callbacks+=litcam.callbacks.Heatmaps"], "Heatmaps"),
        (["--data.class_path=litcam.data.Digits"], "Digits"),
    ],
)
def test_a_wrong_configuration_fails_before_any_work(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from litcam import cli

    with pytest.raises(SystemExit) as stop:
        cli.train(
            ROOT / "configs" / "digits.yaml",
            [*SMALL_RUN, f"--trainer.logger.init_args.save_dir={tmp_path}/r", *arguments],
        )
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_missing_config_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    from litcam import cli

    with pytest.raises(SystemExit) as stop:
        cli.train(ROOT / "configs" / "digits.yaml", ["--config=nowhere.yaml"])
    assert stop.value.code == 2
    assert "nowhere.yaml" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from litcam import cli

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as stop:
        cli.train(
            ROOT / "configs" / "digits.yaml", [*SMALL_RUN, f"--trainer.logger.init_args.save_dir={tmp_path}/file/runs"]
        )
    assert stop.value.code == 2
    assert "cannot be written (Not a directory); name another" in capsys.readouterr().err


def test_evaluate_names_an_unknown_method(run: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    from litcam import cli

    with pytest.raises(SystemExit) as stop:
        cli.evaluate(["--ckpt_path", str(run[0] / "checkpoints" / "last.ckpt"), "--methods", "gradcamm"])
    assert stop.value.code == 2
    assert "There is no explainer 'gradcamm'; choose one of agcam" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.clases=2"], "DigitScenesDataModule has no argument 'clases'; it has num_train, num_val"),
        (["--data.class_path=Digits"], "There is no data module 'Digits'; choose one of litcam.data.CUB200DataModule"),
        (["--metrics", "iou"], "metric is 'iou'; choose one of localization"),
        (["--metrics", "perturbation:protocol=rode"], "protocol is 'rode'; choose one of agcam, chefer, rise, road"),
        (["--report_images=-1"], "report_images is -1"),
        (["--model.model=vit_tiny_patch16_224"], "Give either ckpt_path, checkpoints of train.py, or model and data"),
        (["--data.classes=3"], "classes is 3; choose one of 1, 2"),
        (["--methods", "reciprocam:kernel=box"], "kernel is 'box'; choose one of gaussian, dirac"),
        (["--methods", "cam"], "cam needs a timm model with average pooling"),
        (["--methods", "captum:DeepLift"], "captum:DeepLift is not supported"),
    ],
)
def test_evaluate_names_what_is_wrong_with_an_option(
    run: tuple[Path, str], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    from litcam import cli

    with pytest.raises(SystemExit) as stop:
        cli.evaluate(["--ckpt_path", str(run[0] / "checkpoints" / "last.ckpt"), *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_pickled_code_is_really_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would prove nothing if the exploit were harmless."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Exploit()))
    assert (tmp_path / "code-was-run").is_dir()
