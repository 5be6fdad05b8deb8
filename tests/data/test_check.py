"""--check_data, and data modules of files through the real command line."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from picture_cases import save_picture, truncate
from test_annotations import voc_file, voc_object

from litcam import cli
from litcam.data import DigitScenesDataModule, FolderDataModule
from litcam.data.check import check_data
from litcam.errors import InputError
from litcam.evaluation import load_run

BOX = (16, 12, 44, 40)
FLIP = {"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 1.0}}
RESIZE = {"class_path": "albumentations.Resize", "init_args": {"height": 32, "width": 32}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, 4 training and 2 validation images each, with boxes."""
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            for index in range(count):
                save_picture(tmp_path / "data" / split / name / f"{index}.jpg", (80, 60), BOX)
                voc_file(tmp_path / "data" / "xml" / split / name / f"{index}.xml", voc_object(name))
    return tmp_path / "data"


@pytest.fixture
def run_train(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run train.py's command line on the folder with a very small model."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler keeps the stream of an earlier test
    config: dict[str, Any] = {
        "model": {
            "model": "vit_tiny_patch16_224",
            "num_classes": 2,
            "pretrained": False,
            "model_kwargs": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
        },
        "data": {
            "class_path": "litcam.data.FolderDataModule",
            "init_args": {
                "root": str(root),
                "boxes": "voc",
                "boxes_path": "xml",
                "batch_size": 4,
                "num_workers": 0,
                "train_transforms": [
                    RESIZE,
                    {"class_path": "albumentations.OneOf", "init_args": {"transforms": [FLIP], "p": 0.5}},
                ],
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "enable_progress_bar": False,
            "logger": False,
            "default_root_dir": str(tmp_path / "run"),
            "callbacks": [
                {"class_path": "litcam.callbacks.LocalizationMonitor"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(tmp_path / "run"), "filename": "last"},
                },
            ],
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def run(*arguments: str) -> None:
        cli.train(tmp_path / "config.yaml", arguments)

    return run


def test_a_run_on_files_can_be_built_again_from_its_checkpoint(run_train: Callable[..., None], tmp_path: Path) -> None:
    run_train()
    module, datamodule = load_run(tmp_path / "run" / "last.ckpt")
    assert isinstance(datamodule, FolderDataModule)
    assert datamodule.image_size == (32, 32)
    assert datamodule.train_transforms is not None
    assert datamodule.train_transforms[0] == RESIZE
    assert datamodule.train_transforms[1]["init_args"]["transforms"][0]["class_path"] == FLIP["class_path"]
    batch = datamodule.normalize(next(iter(datamodule.val_dataloader())))
    assert batch["instance_labels"].tolist() == [0, 0, 1, 1]
    with torch.no_grad():
        assert module(batch["image"]).shape == (4, 2)


def test_checking_good_data_prints_them_and_leaves_with_0(
    run_train: Callable[..., None], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run_train("--check_data", "--model.pretrained=true")  # no weights are looked for
    assert left.value.code == 0
    rows = [line.split() for line in capsys.readouterr().out.replace("│", " ").splitlines()]
    for row in (
        ["cat", "4", "2", "0"],
        ["dog", "4", "2", "0"],
        ["all", "8", "4", "0"],
        ["with", "boxes", "8", "4", "0"],
    ):
        assert row in rows
    assert ["Every", "file", "is", "usable."] in rows


def test_checking_bad_data_lists_every_file_once_and_leaves_with_1(
    run_train: Callable[..., None], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(root / "train" / "cat" / "1.jpg")
    (root / "val" / "dog" / "0.jpg").write_bytes(b"")
    voc_file(root / "xml" / "train" / "dog" / "2.xml", voc_object("dog", (5, 5, 4, 9)))
    with pytest.raises(SystemExit) as left:
        run_train("--check_data")
    assert left.value.code == 1
    printed = capsys.readouterr().out
    for trouble in (
        "train/cat/1.jpg: the file is damaged",
        "val/dog/0.jpg: the file is empty",
        "dog/2.xml: object 1, dog",
    ):
        assert printed.count(trouble) == 1
    assert printed.count("train/dog/2.jpg: none of the image's boxes is usable") == 1
    assert "3 bad files and 1 bad box" in printed


def test_a_bad_file_ends_a_run_in_one_sentence(
    run_train: Callable[..., None], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(root / "val" / "cat" / "1.jpg")
    with pytest.raises(SystemExit) as left:
        run_train("--data.num_workers=1")
    assert left.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert sentence.startswith(f"error: {root / 'val' / 'cat' / '1.jpg'}: the file is damaged")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--model.num_classes=5", "error: The model has 5 classes, but the data 2: --model.num_classes 2."),
        ("--data.root=nowhere", "error: root is 'nowhere', which is no folder."),
        ("--data.on_error=ignore", "error: "),
    ],
)
def test_mistakes_end_in_one_sentence(
    run_train: Callable[..., None], capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        run_train(argument)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_data_without_files_cannot_be_checked() -> None:
    with pytest.raises(InputError, match="DigitScenesDataModule has none: nothing to check"):
        check_data(DigitScenesDataModule())


def test_many_classes_are_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(41):
        for image in range(2 + (index == 7)):
            save_picture(tmp_path / f"class_{index}" / f"{image}.png", (8, 8))
    assert check_data(FolderDataModule(str(tmp_path), val_share=0.5, num_workers=0))
    rows = [line.split() for line in capsys.readouterr().out.replace("│", " ").splitlines()]
    assert ["fewest", "of", "a", "class,", "of", "41", "1", "1", "0"] in rows
    assert ["all", "41", "42", "0"] in rows
    assert not any("class_7" in row for row in rows)


@pytest.mark.parametrize("name", ["folder", "voc2012", "voc2012_multilabel"])
def test_the_shipped_configs_are_valid(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    assert path.read_text().splitlines()[1].startswith(f"#   python train.py --config configs/{name}.yaml")
    with pytest.raises(SystemExit):
        cli.train(path, ["--data.root=nowhere", "--check_data"])
    assert "nowhere" in capsys.readouterr().err
