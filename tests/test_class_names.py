"""Classes by name, wherever data and a model meet: evaluation, own images, a training that goes on, and Python."""

import json
import logging
import unicodedata
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from cli_cases import command
from litcam import cli
from litcam.callbacks.pictures import Pictures
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule, FolderDataModule
from litcam.errors import InputError
from litcam.evaluation import evaluate, load_run
from litcam.evaluation.runs import create_model

COLOURS = {"cat": (230, 30, 30), "dog": (30, 30, 230), "bird": (30, 230, 30), "café": (230, 230, 30)}
NET = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
SCORES = ["--methods=agcam", "--metrics=perturbation", "--perturbation_images=1", "--report_images=1"]
FAST = {"devices": 1, "accelerator": "cpu", "enable_progress_bar": False, "logger": False}


def make_folder(root: Path, *names: str, looks: dict[str, str] | None = None) -> Path:
    """4 training and 3 validation images of each class, of a colour of its own (or that of another, by ``looks``)."""
    for name in names:
        for split, count in (("train", 4), ("val", 3)):
            for number in range(count):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                colour = COLOURS[(looks or {}).get(name, name)]
                Image.new("RGB", (32, 32), tuple(min(255, part + 5 * number) for part in colour)).save(path)
    return root


def train(root: Path, run: Path, *arguments: str, classes: int = 2) -> None:
    """Run train.py's command line on a folder, with a small model that learns colours."""
    model = {"model": "vit_tiny_patch16_224", "num_classes": classes, "pretrained": False, "model_kwargs": NET}
    data = {"root": str(root), "batch_size": 4, "num_workers": 0, "eval_resize": "squash"}
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(run / "checkpoints"), "filename": "x"}}
    config = {
        "model": {**model, "lr": 0.01},
        "data": {"class_path": "litcam.data.FolderDataModule", "init_args": data},
        "trainer": {**FAST, "max_epochs": 8, "callbacks": [checkpoint], "default_root_dir": str(run)},
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / "given.yaml").write_text(yaml.safe_dump(config))
    cli.train(Path(), ["--config", str(run / "given.yaml"), *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a training on cat and dog."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging, "raiseExceptions", False)  # Lightning's handler keeps the stream of an earlier test
        train(make_folder(folder / "data", "cat", "dog"), folder / "run")
    return folder / "run" / "checkpoints" / "x.ckpt"


def score(checkpoint: Path, root: Path, output: Path, *arguments: str) -> dict[str, Any]:
    """What evaluate.py finds on a folder."""
    cli.evaluate(["--ckpt_path", str(checkpoint), f"--data.root={root}", f"--output={output}", *SCORES, *arguments])
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


def refusal(capsys: pytest.CaptureFixture[str], run: Any, *arguments: Any) -> str:
    """The last line on stderr of a command line that ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def make_data(root: Path) -> FolderDataModule:
    return FolderDataModule(str(root), batch_size=4, num_workers=0, eval_resize="squash")


def test_a_subset_of_the_classes_is_scored_as_these_classes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = score(trained, make_folder(tmp_path / "data", "dog"), tmp_path / "out")
    assert (results["accuracy"], results["num_images"]) == (1, 3)
    assert results["unknown_classes"] == {"images": 0, "classes": {}}
    assert "Classes are matched by name: the data have 1 of the model's 2." in capsys.readouterr().err
    images = pd.read_csv(tmp_path / "out" / "images.csv")
    assert {(label, name) for label, name in zip(images["label"], images["label_name"], strict=True)} == {(1, "dog")}
    assert set(images["predicted_name"]) == {"dog"}
    assert pd.read_csv(tmp_path / "out" / "classes.csv")["label_name"].tolist() == ["dog"]


def test_evaluating_on_a_class_that_the_model_does_not_know_is_refused_by_name(trained: Path, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "data", "bird", "cat")
    output = tmp_path / "out"
    finished = command("evaluate.py", "--ckpt_path", str(trained), f"--data.root={root}", f"--output={output}", *SCORES)
    assert finished.returncode == 2
    [line] = finished.stderr.splitlines()
    assert line.startswith("error: The model does not know the class 'bird'; it knows cat, dog (unknown_classes: skip")
    assert not (output / "results.json").exists()


@pytest.mark.parametrize(
    ("names", "looks", "message"),
    [
        (("bird", "cat", "dog"), {}, "does not know the class 'bird'; it knows cat, dog"),
        (("Cat", "dog"), {"Cat": "cat"}, "does not know the class 'Cat' (did you mean 'cat'?)"),
        (("bird", "café"), {}, "does not know the classes 'bird', 'café'; it knows cat, dog"),
    ],
)
def test_whatever_else_the_data_have_the_unknown_classes_are_named(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: tuple[str, ...],
    looks: dict[str, str],
    message: str,
) -> None:
    root = make_folder(tmp_path / "data", *names, looks=looks)
    assert message in refusal(capsys, score, trained, root, tmp_path / "out")


def test_unknown_classes_are_left_out_and_counted_on_request(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "data", "bird", "cat", "café")
    results = score(trained, root, tmp_path / "out", "--unknown_classes=skip")
    assert (results["accuracy"], results["num_images"]) == (1, 3)
    assert results["unknown_classes"] == {"images": 6, "classes": {"bird": 3, "café": 3}}
    said = capsys.readouterr()
    assert "Left out of val, as the model does not know the class: 6 images (bird 3, café 3)." in said.err
    assert "val: 3 images, accuracy 1.000; left out as unknown classes: bird 3, café 3" in said.out
    assert set(pd.read_csv(tmp_path / "out" / "images.csv")["label_name"]) == {"cat"}
    alone = make_folder(tmp_path / "alone", "bird")
    assert "no image of val is left" in refusal(
        capsys, score, trained, alone, tmp_path / "none", "--unknown_classes=skip"
    )


def test_own_images_have_the_models_classes_whatever_the_data_have(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_folder(tmp_path / "data", "bird", "cat")
    photo = make_folder(tmp_path / "photos", "dog") / "val" / "dog" / "0.png"
    words = ["--ckpt_path", str(trained), "--images", str(photo), f"--data.root={root}", f"--output={tmp_path / 'out'}"]
    cli.evaluate([*words, "--methods=agcam"])
    [image] = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [(entry["class"], entry["index"]) for entry in image["predicted"]] == [("dog", 1)]
    cli.evaluate([*words, "--methods=agcam", "--targets", "cat"])
    [image] = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [(entry["class"], entry["index"]) for entry in image["targets"]] == [("cat", 0)]
    assert "There is no class 'bird'" in refusal(capsys, cli.evaluate, [*words, "--targets", "bird"])


def test_a_training_goes_on_with_its_own_classes_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--ckpt_path", str(trained), "--trainer.max_epochs=9")
    other = make_folder(tmp_path / "other", "bird", "cat")
    message = refusal(capsys, train, other, tmp_path / "run", *more)
    assert message.startswith("error: The model does not know the class 'bird'; it knows cat, dog: a training goes on")
    assert not list(tmp_path.rglob("*.ckpt"))
    fewer = make_folder(tmp_path / "fewer", "dog")
    assert "The data lack 'cat', which the model has learnt" in refusal(capsys, train, fewer, tmp_path / "run", *more)
    three = make_folder(tmp_path / "three", "bird", "cat", "dog")
    assert "does not know the class 'bird'" in refusal(capsys, train, three, tmp_path / "run", *more)
    message = refusal(capsys, train, three, tmp_path / "run", *more, "--model.num_classes=3")
    assert message.startswith(f"error: {trained} ")  # whose head has two
    assert not list(tmp_path.rglob("*.ckpt"))
    train(make_folder(tmp_path / "same", "cat", "dog"), tmp_path / "run", *more)
    assert torch.load(tmp_path / "run" / "checkpoints" / "x.ckpt", weights_only=True)["class_names"] == ["cat", "dog"]


def test_resuming_on_other_classes_is_refused_in_python_too(trained: Path, tmp_path: Path) -> None:
    module, _ = load_run(trained)
    fresh = ViTClassifier(**{**module.hparams, "pretrained": False})
    other = make_data(make_folder(tmp_path / "other", "bird", "cat"))
    for model, checkpoint in ((fresh, str(trained)), (module, None)):
        with pytest.raises(InputError, match="does not know the class 'bird'"):
            L.Trainer(**FAST, max_epochs=9, enable_checkpointing=False).fit(model, other, ckpt_path=checkpoint)


def test_validation_in_python_matches_by_name(trained: Path, tmp_path: Path) -> None:
    module, data = load_run(trained, {"root": str(make_folder(tmp_path / "data", "dog"))})
    fresh = ViTClassifier(**{**module.hparams, "pretrained": False})
    assert [int(label) for batch in data.val_dataloader() for label in batch["label"]] == [1, 1, 1]
    for model, checkpoint in ((module, None), (fresh, str(trained))):
        data = make_data(tmp_path / "data")
        trainer = L.Trainer(**FAST)
        trainer.validate(model, data, ckpt_path=checkpoint, verbose=False, weights_only=True)
        assert trainer.callback_metrics["val/accuracy"] == 1
        assert data.label_names == ["cat", "dog"]
        assert Pictures(trainer).name(1) == "dog"
    assert evaluate(module, data, ["agcam"], []).results["accuracy"] == 1
    other = make_data(make_folder(tmp_path / "other", "bird", "dog"))
    with pytest.raises(InputError, match="does not know the class 'bird'"):
        L.Trainer(**FAST).validate(module, other, verbose=False)
    assert evaluate(module, other, ["agcam"], [], unknown_classes="skip").results["accuracy"] == 1


def test_names_in_two_unicode_forms_are_the_same(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    module = ViTClassifier("vit_tiny_patch16_224", 2, False, NET)
    module.class_names = ["bird", composed]
    data = make_data(make_folder(tmp_path / "data", "bird", apart, looks={apart: "café"}))
    data.use_model(module)
    samples = [sample for batch in data.val_dataloader() for sample in zip(batch["id"], batch["label"], strict=True)]
    assert {(name.split("/")[1], int(label)) for name, label in samples} == {("bird", 0), (composed, 1)}


def without_names(checkpoint: Path, path: Path) -> Path:
    """The checkpoint as it was before classes were kept by name."""
    saved = torch.load(checkpoint, weights_only=True)
    torch.save({key: value for key, value in saved.items() if not key.startswith("class_")}, path)
    return path


def test_a_checkpoint_without_names_takes_labels_by_place_and_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = without_names(trained, tmp_path / "old.ckpt")
    data = make_folder(tmp_path / "data", "cat", "dog")
    sentence = "The model keeps no names of its classes: they are taken by place, 0 is cat, 1 is dog."
    assert score(old, data, tmp_path / "out")["accuracy"] == 1
    assert sentence in capsys.readouterr().err
    train(data, tmp_path / "run", "--ckpt_path", str(old), "--trainer.max_epochs=9")
    assert sentence in capsys.readouterr().err
    three = make_folder(tmp_path / "three", "bird", "cat", "dog")
    assert refusal(capsys, score, old, three, tmp_path / "none") == (
        "error: The model has 2 classes and keeps no names of them, but the data have 3 (bird, cat, dog), so nobody "
        "can tell which is which; name the data that it was trained on."
    )


def test_timms_own_head_has_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    scenes = DigitScenesDataModule(num_val=4, num_workers=0)
    assert create_model({"model": "vit_mini_patch8_64", "num_classes": 10}, scenes).class_names == list("0123456789")
    other = create_model({"model": "vit_mini_patch8_64", "num_classes": 10, "pretrained": False}, scenes)
    assert other.class_names is None
