"""train.py and evaluate.py on folders as people have them: each fault in one sentence, and no end of waiting."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from folder_cases import NFC, NFD, clutter, link, make_pipe, make_socket, oversized
from picture_cases import save_picture
from test_annotations import voc_file, voc_object

from cli_cases import command
from litcam import cli

MODEL = {
    "model": "vit_tiny_patch16_224",
    "num_classes": 2,
    "pretrained": False,
    "model_kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
}


def make_config(folder: Path, **arguments: object) -> Path:
    """A training on train/<class> and val/<class> in ``folder / "data"``."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for index in range(count):
                save_picture(folder / "data" / split / name / f"{index}.jpg", (40, 30))
    data = {"root": str(folder / "data"), "num_workers": 0, "batch_size": 2, **arguments}
    config = {
        "model": MODEL,
        "data": {"class_path": "litcam.data.FolderDataModule", "init_args": data},
        "trainer": {"accelerator": "cpu", "max_epochs": 1, "logger": False, "default_root_dir": str(folder / "run")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


def spoil(folder: Path) -> None:
    """Put one entry of every kind that cannot be read into a folder, beside clutter."""
    clutter(folder)
    make_pipe(folder / "pipe.jpg")
    make_socket(folder / "socket.jpg")
    link(folder / "circle.jpg", "circle.jpg")
    link(folder / "gone.jpg", "nowhere.jpg")
    link(folder / "self", ".")
    oversized(folder / "bomb.png", 12000, 12000)
    oversized(folder / "bomb.jpg", 65000, 65000)


TROUBLES = {
    "pipe.jpg": "it is a named pipe, no regular file",
    "socket.jpg": "it is a socket, no regular file",
    "circle.jpg": "the link leads in a circle",
    "gone.jpg": "the link leads nowhere",
    "self": "the link leads back to a folder that it lies in",
    "bomb.png": "the image has 144.0 million pixels, and at most 89.5 million are read",
    "bomb.jpg": "the image has 4225.0 million pixels, and at most 89.5 million are read",
}


def test_check_data_names_every_entry_that_cannot_be_read_and_nothing_else(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    spoil(tmp_path / "data" / "train" / "cat")
    clutter(tmp_path / "data")
    done = command("train.py", "--config", str(config), "--check_data")
    assert done.returncode == 1
    assert f"{len(TROUBLES)} bad files" in done.stdout
    for name, trouble in TROUBLES.items():
        [line] = [line for line in done.stdout.splitlines() if f"cat/{name}: " in line]
        assert trouble in line
    assert "Traceback" not in done.stderr
    assert "DecompressionBomb" not in done.stderr


def test_images_of_ones_own_are_explained_beside_every_entry_that_cannot_be_read(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for index in range(2):
        save_picture(photos / f"{index}.png", (40, 30))
    spoil(photos)
    make_config(tmp_path)
    data = {"class_path": "litcam.data.FolderDataModule", "root": str(tmp_path / "data")}
    done = command(
        "evaluate.py",
        *("--model", json.dumps(MODEL), "--data", json.dumps(data), "--methods", "agcam"),
        *("--images", str(photos), str(photos / "circle.jpg"), str(photos / "pipe.jpg")),
        *("--output", str(tmp_path / "out")),
    )
    assert done.returncode == 0, done.stderr
    assert f"2 images explained, {len(TROUBLES)} could not be read." in done.stdout
    unreadable = json.loads((tmp_path / "out" / "predictions.json").read_text())["unreadable"]
    assert {Path(entry["file"]).name for entry in unreadable} == set(TROUBLES)
    for entry in unreadable:
        assert TROUBLES[Path(entry["file"]).name] in entry["trouble"]
    assert "Traceback" not in done.stderr
    assert "DecompressionBomb" not in done.stderr


def fits_two(data: Path) -> None:
    save_picture(data / "train" / "cat" / "0.png", (40, 30))
    for path in (*data.glob("train/*/*.jpg"), *data.glob("val/*/*.jpg")):
        voc_file(path.with_suffix(".xml"), voc_object(path.parent.name, (1, 1, 9, 9)), size=(40, 30))


def twins(data: Path) -> None:
    for form in (NFC, NFD):
        save_picture(data / "train" / "cat" / f"{form}.jpg", (40, 30))


@pytest.mark.parametrize(
    ("do", "arguments", "message"),
    [
        (lambda data: make_pipe(data / "train" / "dog" / "x.jpg"), {}, "(it is a named pipe, no regular file)"),
        (lambda data: link(data / "val" / "emu", "emu"), {}, "val/emu: the link leads in a circle"),
        (lambda data: link(data / "train" / "emu", "cat"), {}, "emu: it is the folder"),
        (
            lambda data: oversized(data / "val" / "cat" / "0.jpg", 12000, 12000),
            {},
            "0.jpg: the image has 144.0 million",
        ),
        (lambda data: (data / "train").rename(data / "emu"), {}, "has a folder 'val', but none 'train'"),
        (twins, {}, "only in how accents are written (NFC, NFD); rename one"),
        (fits_two, {"boxes": "voc"}, "the annotation train/cat/0 fits 2 images"),
        (
            lambda data: make_pipe(data / "a.csv"),
            {"boxes": "csv", "boxes_path": "a.csv"},
            "a.csv: the file cannot be op",
        ),
        (lambda data: make_pipe(data / "classes.txt"), {"boxes": "yolo"}, "classes.txt"),
    ],
)
def test_a_training_ends_in_one_sentence(
    tmp_path: Path,
    do: Callable[[Path], object],
    arguments: dict[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = make_config(tmp_path, **arguments)
    do(tmp_path / "data")
    with pytest.raises(SystemExit) as left:
        cli.train(config, [])
    assert left.value.code == 2
    printed = capsys.readouterr().err
    [sentence] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert message in sentence
    assert "DecompressionBomb" not in printed
