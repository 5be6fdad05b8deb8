"""Files of checkpoints and weights that cannot be used: each is named in one sentence, and none gives a number."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cli_cases import ROOT, SMALL_RUN, command
from conftest import SMALL
from litcam import cli
from litcam.checkpoints import read_checkpoint
from litcam.data import DigitScenesDataModule
from litcam.errors import CheckpointError, InputError
from litcam.evaluation import load_run

NET = {key: value for key, value in SMALL.items() if key != "num_classes"}
QKV = "net.blocks.0.attn.qkv.weight"


@pytest.fixture(scope="module")
def good(run: tuple[Path, str]) -> Path:
    return run[0] / "checkpoints" / "last.ckpt"


@pytest.fixture
def changed(good: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the good checkpoint anew with some of it changed by a function, or left out."""

    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        checkpoint = torch.load(good, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, tmp_path / "bad.ckpt")
        return tmp_path / "bad.ckpt"

    return write


def zeroed(good: Path, path: Path, record: str, count: int = 400) -> Path:
    """A copy with bytes of a record set to zero, as a bad disk leaves them; the zip itself stays in order."""
    whole = bytearray(good.read_bytes())
    with zipfile.ZipFile(good) as archive:
        info = max((one for one in archive.infolist() if record in one.filename), key=lambda one: one.file_size)
    name_and_extra = sum(int.from_bytes(whole[info.header_offset + at :][:2], "little") for at in (26, 28))
    start = info.header_offset + 30 + name_and_extra
    count = min(count, info.file_size)
    assert any(whole[start : start + count])
    whole[start : start + count] = bytes(count)
    path.write_bytes(whole)
    return path


def refusal(start: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that a command ends with."""
    with pytest.raises(SystemExit) as stop:
        start()
    printed = capsys.readouterr().err
    assert stop.value.code == 2
    assert "Traceback" not in printed
    assert "weights_only=False" not in printed
    return printed.strip().splitlines()[-1]


def test_a_weight_with_zeroed_bytes_is_damaged_not_evaluated(good: Path, tmp_path: Path) -> None:
    bad = zeroed(good, tmp_path / "bad.ckpt", "data/")
    torch.load(bad, weights_only=True)  # which finds nothing amiss
    finished = command("evaluate.py", "--ckpt_path", str(bad), "--output", str(tmp_path / "out"))
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"error: {bad} is damaged (the checksum of ")
    assert "Traceback" not in finished.stderr
    assert not (tmp_path / "out").exists()


def broken_files(folder: Path, good: Path) -> dict[str, Path]:
    """Files that are no whole checkpoint."""
    whole = good.read_bytes()
    files = {
        name: folder / f"{name}.ckpt" for name in ("empty", "cut", "lfs", "legacy", "twice", "npz", "program", "script")
    }
    files["empty"].write_bytes(b"")
    files["cut"].write_bytes(whole[:-100])  # of the central directory
    files["lfs"].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    torch.save(torch.load(good, weights_only=True), files["legacy"], _use_new_zipfile_serialization=False)
    shutil.copy(good, files["twice"])
    with zipfile.ZipFile(files["twice"], "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, archive.read(name))
    with files["npz"].open("wb") as file:
        np.savez(file, weight=np.zeros(3))
    files["program"].write_bytes(b"\x7fELF" + bytes(1000))
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(files["script"]))  # type: ignore[no-untyped-call]
    files["folder"] = folder / "folder.ckpt"
    files["folder"].mkdir()
    for record in ("data.pkl", "version", ".format_version"):
        files[record] = zeroed(good, folder / f"{record}.ckpt", record, 4)
    return files


def test_every_other_file_that_is_no_whole_checkpoint_is_named(good: Path, tmp_path: Path) -> None:
    said = {
        "empty": "is empty",
        "lfs": "pointer of Git LFS, not the file itself; get that by git lfs pull",
        "twice": "more than once",
        "folder": "is a folder or a device, not a file",
    }
    for name, path in broken_files(tmp_path, good).items():
        with pytest.raises(CheckpointError, match=said.get(name, "is damaged")) as stop:
            read_checkpoint(path)
        assert str(path) in str(stop.value)
        assert "weights_only" not in str(stop.value)


def rescale(size: float) -> Callable[[dict[str, Any]], object]:
    return lambda one: one["state_dict"][QKV].fill_(size)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "hyper-parameters as a list": (lambda one: one.update(hyper_parameters=[1]), "its hyper_parameters is [1], not"),
    "no hyper-parameters": (lambda one: one.update(hyper_parameters=None), "its hyper_parameters is None, not dict"),
    "numbers for names": (lambda one: one.update(hyper_parameters={3: 4}), "its hyper_parameters has keys that are no"),
    "no state dict": (lambda one: one.pop("state_dict"), "it has no state_dict"),
    "a state dict of text": (lambda one: one.update(state_dict="x"), "its state_dict is 'x', not dict"),
    "no version": (lambda one: one.pop("pytorch-lightning_version"), "it has no pytorch-lightning_version"),
    "another version": (lambda one: one.update({"pytorch-lightning_version": "new"}), "Invalid version: 'new'"),
    "a step in words": (lambda one: one.update(global_step="ten"), "its global_step is 'ten', not int"),
    "one class name": (lambda one: one.update(class_names="cat"), "its class_names are no list of names"),
    "NaN weights": (rescale(float("nan")), f"weights that are NaN or infinite: {QKV};"),
    "infinite bias": (lambda one: one["state_dict"]["net.head.bias"][:1].fill_(-torch.inf), "infinite: net.head.bias"),
    "too large for its type": (
        lambda one: one["state_dict"].update({QKV: torch.full((72, 24), 1e300, dtype=torch.float64)}),
        f"NaN or infinite: {QKV}",
    ),
    "another shape": (
        lambda one: one["state_dict"].update({"net.head.weight": torch.ones(7, 24)}),
        "does not fit the model: net.head.weight is [7, 24] and has to be [10, 24]",
    ),
    "missing and unknown": (
        lambda one: one["state_dict"].update(other=one["state_dict"].pop(QKV)),
        f"does not fit the model: it lacks {QKV}; it has besides other.",
    ),
    "whole numbers": (
        lambda one: one["state_dict"].update({"net.head.bias": torch.ones(10, dtype=torch.int64)}),
        "something else than floating-point weights: net.head.bias (torch.int64,",
    ),
    "complex numbers": (
        lambda one: one["state_dict"].update({"net.head.bias": torch.ones(10, dtype=torch.complex64)}),
        "net.head.bias (torch.complex64,",
    ),
    "text for a weight": (lambda one: one["state_dict"].update({"net.head.bias": "x"}), "net.head.bias ('x')"),
}
HYPER_PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "a model as a list": ({"model": ["vit"]}, "model is ['vit']; str is needed"),
    "a model of a hub": ({"model": "hf-hub:timm/vit_tiny_patch16_224"}, "timm has no model 'hf-hub:timm"),
    "an unknown argument": ({"modle": "x"}, "ViTClassifier has no argument 'modle'"),
    "a number in words": ({"lr": "fast"}, "make no classifier: lr is 'fast'; float is needed."),
    "a list for a number": ({"num_classes": [10]}, "num_classes is [10]; int is needed"),
    "a word for yes or no": ({"multi_label": "yes"}, "multi_label is 'yes'; bool is needed"),
    "far too many classes": ({"num_classes": 10**12}, "num_classes is 1000000000000, but it holds"),
    "far too deep": ({"model_kwargs": {"depth": 10**9}}, "depth is 1000000000, but it holds"),
    "an unknown layer": ({"model_kwargs": {"act_layer": "nope"}}, "timm cannot make vit_mini_patch8_64 with"),
    "no heads": ({"model_kwargs": {"num_heads": 0}}, "num_heads=0 (ZeroDivisionError"),
    "heads that do not divide": ({"model_kwargs": {"num_heads": 5}}, "num_heads=5 (AssertionError"),
    "nested nonsense": ({"model_kwargs": {"img_size": {"a": [1]}}}, "make no classifier"),
    "arguments as a list": ({"model_kwargs": [1]}, "make no classifier"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_checkpoint_with_something_else_in_it_is_named(changed: Callable[..., Path], kind: str) -> None:
    change, message = CHANGES[kind]
    path = changed(change)
    with pytest.raises(CheckpointError) as stop:
        load_run(path)
    assert str(stop.value).startswith(str(path))
    assert message in str(stop.value)


@pytest.mark.parametrize("kind", HYPER_PARAMETERS)
def test_hyper_parameters_that_make_no_classifier_are_named(changed: Callable[..., Path], kind: str) -> None:
    new, message = HYPER_PARAMETERS[kind]
    path = changed(lambda one: one["hyper_parameters"].update(new))
    with pytest.raises(CheckpointError) as stop:
        load_run(path)
    assert str(stop.value).startswith(str(path))
    assert message in str(stop.value)


def test_both_commands_name_the_file(changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(rescale(float("inf")))
    for start in (
        lambda: cli.evaluate(["--ckpt_path", str(path)]),
        lambda: cli.evaluate(["--ckpt_path", str(path), "--images", str(ROOT)]),
        lambda: cli.train(ROOT / "configs" / "digits.yaml", [*SMALL_RUN, f"--ckpt_path={path}"]),
    ):
        assert refusal(start, capsys).startswith(f"error: {path} holds weights that are NaN or infinite")


def test_a_training_is_not_resumed_by_what_it_cannot_go_on_with(
    changed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def resume(path: Path, *arguments: str) -> str:
        words = [*SMALL_RUN, f"--trainer.logger.init_args.save_dir={tmp_path}/r", f"--ckpt_path={path}", *arguments]
        return refusal(lambda: cli.train(ROOT / "configs" / "digits.yaml", words), capsys)

    whole = changed(lambda one: None)
    assert "net.head.weight is [10, 24] and has to be [4, 24]" in resume(whole, "--model.num_classes=4")
    assert not (tmp_path / "r").exists()
    bare = changed(lambda one: one.pop("optimizer_states"))
    assert f"{bare} holds no state of a training to go on with (no optimizer_states)" in resume(bare)
    none = changed(lambda one: one.update(optimizer_states=[]))
    assert "no state of a training to go on with (no optimizer_states)" in resume(none)
    emptied = changed(lambda one: one["optimizer_states"][0].update(param_groups=[]))
    assert f"{emptied} holds a state that this training cannot go on with (ValueError: loaded" in resume(emptied)


@pytest.mark.parametrize("where", ["checkpoint_path", "pretrained_cfg_overlay", "pretrained_cfg"])
def test_a_checkpoint_opens_no_other_file(changed: Callable[..., Path], tmp_path: Path, where: str) -> None:
    bait = tmp_path / "bait.pth"
    torch.save({}, bait)
    value: Any = str(bait) if where == "checkpoint_path" else {"file": str(bait), "hf_hub_id": "a/b"}
    path = changed(lambda one: one["hyper_parameters"]["model_kwargs"].update({where: value}))
    opened: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        real = torch.load
        patch.setattr(torch, "load", lambda file, **options: (opened.append(str(file)), real(file, **options))[1])
        with pytest.raises(CheckpointError, match="model_kwargs say where weights are"):
            load_run(path)
    assert opened == [str(path)]


def test_a_data_module_of_another_package_is_not_replaced_by_litcams(
    changed: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = "my.pkg.DigitScenesDataModule"
    path = changed(lambda one: one["datamodule_hyper_parameters"].update(_class_path=theirs))
    sentence = refusal(lambda: cli.evaluate(["--ckpt_path", str(path)]), capsys)
    assert sentence.startswith(f"error: {path} was trained on '{theirs}', which litcam does not have")
    assert "--data.class_path with one of litcam.data.CUB200DataModule" in sentence
    with pytest.raises(InputError, match=f"There is no data module '{theirs}'"):
        load_run(path, {"class_path": theirs})
    _, data = load_run(path, {"class_path": "litcam.data.DigitScenesDataModule", "num_val": 3})
    assert type(data) is DigitScenesDataModule


def test_a_users_own_data_module_that_is_imported_is_taken(changed: Callable[..., Path]) -> None:
    class OwnScenes(DigitScenesDataModule):
        pass

    own = f"{OwnScenes.__module__}.{OwnScenes.__qualname__}"
    for name in (own, "OwnScenes", "litcam.data.digits.DigitScenesDataModule", "litcam.data.DigitScenesDataModule"):
        path = changed(lambda one, name=name: one["datamodule_hyper_parameters"].update(_class_path=name))
        assert type(load_run(path)[1]).__name__ == name.rsplit(".", 1)[-1]


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"num_val": "many"}, "num_val is 'many'; int is needed"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"speed": 3}, "DigitScenesDataModule has no argument 'speed'"),
    ],
)
def test_arguments_that_make_no_data_module_are_named(
    changed: Callable[..., Path], new: dict[str, Any], message: str
) -> None:
    path = changed(lambda one: one["datamodule_hyper_parameters"].update(new))
    with pytest.raises(CheckpointError) as stop:
        load_run(path)
    assert str(stop.value).startswith(str(path))
    assert message in str(stop.value)
