"""evaluate.py --drift: the pictures that DriftMonitor drew, drawn anew from the maps that it left, and its numbers."""

import csv
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from litcam import cli
from litcam.callbacks.drift_history import PanelMaps, read_history
from litcam.lock import only_writer
from litcam.metrics.functional.similarity import SIMILARITIES

STYLE = {"rows": 5, "columns": 3, "colormap": "magma"}
MONITORS: dict[str, dict[str, Any]] = {
    "agcam": {"num_images": 7, **STYLE},
    "rollout": {"mode": "min", "floor": False, **STYLE},
}
WORDS = [f"--filmstrip.{name}={value}" for name, value in STYLE.items()]
TILE = np.s_[24 : 24 + 96, 4 : 4 + 96]  # of the first image


def write_images(root: Path) -> None:
    """Four classes, three validation images each, larger than the model takes them."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for name in ("bird", "cat", "dog", "fish"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(generator.integers(0, 255, (4, 5, 3), dtype=np.uint8))
                coarse.resize((90, 70), Image.Resampling.BICUBIC).save(root / split / name / f"{number}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three epochs, which watched two explainers; its images lie beside it."""
    folder = tmp_path_factory.mktemp("drift")
    write_images(folder / "images")
    monitors = [
        {"class_path": "litcam.callbacks.DriftMonitor", "init_args": {"explainer": name, **options}}
        for name, options in MONITORS.items()
    ]
    checkpoint = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"filename": "last", "enable_version_counter": False},
    }
    config = {
        "seed_everything": 0,
        "model": {
            "model": "vit_mini_patch8_64",
            "num_classes": 4,
            "pretrained": False,
            "model_kwargs": {"depth": 2, "embed_dim": 24, "num_heads": 2},
            "lr": 0.03,
        },
        "data": {
            "class_path": "litcam.data.FolderDataModule",
            "init_args": {"root": str(folder / "images"), "batch_size": 4, "num_workers": 0},
        },
        "trainer": {
            "max_epochs": 3,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder), "name": "run", "version": ""},
            },
            "callbacks": [*monitors, checkpoint],
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:  # which puts back what a training changes
        patch.setattr(sys, "argv", sys.argv)
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            patch.setenv(name, "0")
        cli.train(folder / "config.yaml", [])
    return folder / "run"


@pytest.fixture(scope="module")
def redrawn(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes of this run."""
    folder = tmp_path_factory.mktemp("redrawn")
    cli.evaluate(["--drift", str(trained), "--output", str(folder), *WORDS])
    return folder


@pytest.fixture
def moved(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the run, whose images are not where they were."""
    shutil.copytree(trained, tmp_path / "run")
    images = trained.parent / "images"
    images.rename(tmp_path / "elsewhere")
    yield tmp_path / "run"
    (tmp_path / "elsewhere").rename(images)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence with which the command ends."""
    with pytest.raises(SystemExit) as stop:
        cli.evaluate(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_the_pictures_are_byte_for_byte_those_of_the_monitor(trained: Path, redrawn: Path) -> None:
    assert {path.name for path in redrawn.iterdir()} == set(MONITORS)
    for name in MONITORS:
        drawn, expected = contents(redrawn / name), contents(trained / "drift" / name)
        assert set(drawn) == {"drift.png", "drift_curves.png", "drift.csv"}
        assert drawn["drift.png"] == expected["drift.png"]
        assert drawn["drift_curves.png"] == expected["drift_curves.png"]
        strip = np.asarray(Image.open(redrawn / name / "drift.png"))
        assert strip.shape[:2] == (5 * 136 + 24, 4 * 100 + 4), "five images; the images, and three epochs of four"
        assert strip[TILE].std() > 5, "an image, no black tile"
    scores = [maps.score for maps in read_history(trained / "drift" / "rollout")][1:]
    assert scores[0] != scores[1], "the best epoch would be the same by its minimum and its maximum"


def test_the_table_has_every_epoch_and_what_was_logged_for_all_similarities(trained: Path, redrawn: Path) -> None:
    logged = list(csv.DictReader((trained / "history.csv").open()))
    references = ("previous", "first", "best")
    for name, options in MONITORS.items():
        rows = list(csv.DictReader((redrawn / name / "drift.csv").open()))
        assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
        expected = {f"{kind}_{ref}{end}" for kind in SIMILARITIES for ref in references for end in ("", "_unchanged")}
        expected |= {f"unchanged_{reference}" for reference in references} | {"epoch", "gini", "degenerate"}
        expected |= {f"{kind}_floor" for kind in SIMILARITIES if options.get("floor", True)}
        assert set(rows[0]) == expected
        assert {value for key, value in rows[0].items() if key.endswith(references)} == {""}
        for row, epoch in zip(rows, logged, strict=True):
            known = {key: epoch[f"val/{name}/drift/{key}"] for key in row if f"val/{name}/drift/{key}" in epoch}
            assert {"gini", "degenerate", "spearman_previous", "spearman_best", "unchanged_first"} <= known.keys()
            for key, value in known.items():
                assert float(row[key] or "nan") == pytest.approx(float(value or "nan"), abs=1e-6, nan_ok=True), key
        for row in rows[1:]:
            assert all(0 <= float(row[f"centroid_shift_{reference}"]) < 1 for reference in references)


def test_without_the_data_the_tiles_are_black_and_the_curves_are_the_same(
    moved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(moved / "drift" / "rollout")
    output = moved / "evaluation" / "drift" / "rollout"
    cli.evaluate(["--drift", str(moved / "drift" / "rollout"), *WORDS])
    printed = capsys.readouterr().out
    assert f"Written: {output / 'drift.png'}, drift_curves.png and drift.csv" in printed
    assert "The images of the filmstrip are black: root is '" in printed
    assert "which is no folder" in printed
    assert [path.name for path in output.parent.iterdir()] == ["rollout"]
    assert contents(moved / "drift" / "rollout") == before
    assert contents(output)["drift_curves.png"] == before["drift_curves.png"]
    original, redrawn = (
        np.asarray(Image.open(folder / "drift.png")) for folder in (moved / "drift" / "rollout", output)
    )
    assert original.shape == redrawn.shape
    assert not redrawn[TILE].any()
    captions = np.s_[120 : 24 + 136]
    assert np.array_equal(original[captions], redrawn[captions]), "names of the classes, which the checkpoint has"
    cli.evaluate(["--drift", str(moved / "drift" / "rollout"), *WORDS, f"--data.root={moved.parent / 'elsewhere'}"])
    assert "black" not in capsys.readouterr().out
    assert contents(output)["drift.png"] == before["drift.png"]


def test_other_images_are_not_put_below_the_maps(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    other = shutil.copytree(trained.parent / "images", tmp_path / "other")
    for path in (other / "val").rglob("0.png"):
        path.rename(path.with_name("9.png"))
    error = refused(["--drift", str(run), f"--data.root={other}"], capsys)
    assert "name those of the run: --data.root" in error
    assert "The validation data have 'val/" in error
    assert not (run / "evaluation").exists()
    assert "has no argument 'rot'" in refused(["--drift", str(run), "--data.rot=x"], capsys)


def write_epochs(run: Path, count: int) -> Path:
    """Random maps as of a DriftMonitor, in a run without anything else."""
    generator, folder = np.random.default_rng(0), run / "drift" / "agcam"
    for epoch in range(count):
        numbers = [np.arange(3), np.arange(3), np.arange(3)]
        PanelMaps(epoch, ("a", "b", "c"), *numbers, generator.random((3, 4, 4)).astype(np.float16), None).write(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "photo.jpg"], "alone: leave out --images."),
        (["--ckpt_path", "best.ckpt", "--methods", "rollout"], "alone: leave out --ckpt_path, --methods."),
        (["--model.model=vit_mini_patch8_64", "--split=test"], "alone: leave out --model, --split."),
        (["--filmstrip.rows=0"], "rows is 0; at least 1 is needed"),
        (["--filmstrip.columns=1"], "columns is 1; at least 2 is needed"),
        (["--filmstrip.colormap=jett"], "no colormap 'jett'"),
        (["--output={run}/drift"], "has the run's own maps and pictures; name another folder: --output."),
        (
            ["--output={run}/drift/agcam/epoch_000.npz"],
            "cannot be written (Not a directory); name another",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    folder = write_epochs(tmp_path, 2)
    before = contents(folder)
    error = refused(["--drift", str(tmp_path), *(word.format(run=tmp_path) for word in arguments)], capsys)
    assert message in error
    assert error.startswith("error: ")
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["drift"]


def test_a_filmstrip_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(["--ckpt_path", "best.ckpt", "--filmstrip.rows=3"], capsys)
    assert "filmstrip is the picture of a run's drift: name the run folder with --drift." in error


def test_maps_that_say_no_drift_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"There are no maps of DriftMonitor in {tmp_path}" in refused(["--drift", str(tmp_path)], capsys)
    folder = write_epochs(tmp_path, 1)
    error = refused(["--drift", str(tmp_path)], capsys)
    assert f"{folder} has the maps of epoch 0 alone, and drift is between epochs: train longer." in error
    write_epochs(tmp_path, 2)
    (folder / "epoch_001.npz").write_bytes(b"text")
    assert "epoch_001.npz is damaged" in refused(["--drift", str(tmp_path)], capsys)


def test_maps_alone_are_drawn_too_without_a_checkpoint_and_a_best_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_epochs(tmp_path, 2)
    cli.evaluate(["--drift", str(tmp_path), "--filmstrip.rows=2", "--filmstrip.colormap=gray"])
    assert f"are black: There is no checkpoint in {tmp_path}" in capsys.readouterr().out
    folder = tmp_path / "evaluation" / "drift" / "agcam"
    strip = np.asarray(Image.open(folder / "drift.png"))
    assert strip.shape == (2 * 136 + 24, 3 * 100 + 4, 3)
    overlays = strip[24 : 24 + 96, 104:200]
    assert overlays.std() > 5
    assert np.ptp(overlays, axis=-1).max() == 0, "gray"
    assert not [name for name in (folder / "drift.csv").read_text().splitlines()[0].split(",") if "best" in name]


def test_a_folder_that_somebody_else_is_writing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_epochs(tmp_path, 2)
    with only_writer(tmp_path / "out" / "agcam"):
        error = refused(["--drift", str(tmp_path), f"--output={tmp_path / 'out'}"], capsys)
    assert f"{tmp_path / 'out' / 'agcam'} is being written by process" in error
    assert not (tmp_path / "out").exists()
