"""Files of weights given as pretrained: read whole, checked against the net, and named where they do not fit."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from cli_cases import ROOT, SMALL_RUN
from conftest import SMALL
from litcam import cli
from litcam.classifier import ViTClassifier
from litcam.errors import CheckpointError, InputError
from test_checkpoints import refusal, zeroed

NAME = "vit_tiny_patch16_224"
KWARGS = {key: value for key, value in SMALL.items() if key != "num_classes"}
QKV = "blocks.0.attn.qkv.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return dict(timm.create_model(NAME, pretrained=False, **SMALL).state_dict())


def load(path: Path, num_classes: int = 10, **kwargs: Any) -> Any:
    return ViTClassifier(NAME, num_classes, pretrained=str(path), model_kwargs={**KWARGS, **kwargs}).net


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_of_every_kind_of_file_reach_the_net(
    weights: dict[str, Tensor], tmp_path: Path, suffix: str, dtype: torch.dtype
) -> None:
    path = tmp_path / f"weights.{suffix}"
    half = {name: value.to(dtype) for name, value in weights.items()}
    save_file(half, path) if suffix == "safetensors" else torch.save(half, path)
    assert torch.equal(load(path).get_parameter(QKV), half[QKV].float())


@pytest.mark.parametrize("key", ["state_dict", "model", "model_ema", "state_dict_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net."])
def test_so_do_those_within_a_checkpoint(weights: dict[str, Tensor], tmp_path: Path, key: str, prefix: str) -> None:
    named = {prefix + name: value for name, value in weights.items()}
    torch.save({key: named, "epoch": 3, "optimizer": {}}, tmp_path / "weights.pth")
    assert torch.equal(load(tmp_path / "weights.pth").get_parameter(QKV), weights[QKV])
    assert "state_dict" not in load(tmp_path / "weights.pth").pretrained_cfg


def broken(folder: Path, weights: dict[str, Tensor]) -> dict[str, Path]:
    """Files that hold no whole weights."""
    whole = folder / "whole.safetensors"
    save_file(weights, whole)
    length = struct.unpack("<Q", whole.read_bytes()[:8])[0]
    header = json.loads(whole.read_bytes()[8 : 8 + length])
    overlapping = {**header, QKV: {**header[QKV], "data_offsets": header["norm.bias"]["data_offsets"]}}
    contents = {
        "cut.safetensors": whole.read_bytes()[:-100],
        "empty.safetensors": b"",
        "long.safetensors": struct.pack("<Q", 2**40) + whole.read_bytes()[8:],
        "overlapping.safetensors": _with_header(overlapping, whole.read_bytes()[8 + length :]),
        "nonsense.safetensors": _with_header([1], b""),
        "text.safetensors": b"not weights at all",
        "lfs.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "page.pth": b"<!DOCTYPE html><html>404</html>",
        "empty.pt": b"",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.pth").mkdir()
    torch.save(weights, folder / "whole.pth")
    zeroed(folder / "whole.pth", folder / "zeroed.pth", "data/")
    torch.save(weights, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    (folder / "cut_legacy.pth").write_bytes((folder / "legacy.pth").read_bytes()[:-5000])
    names = [*contents, "folder.pth", "zeroed.pth", "cut_legacy.pth"]
    return {name: folder / name for name in names}


def _with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_files_that_hold_no_whole_weights_are_named(weights: dict[str, Tensor], tmp_path: Path) -> None:
    said = {"empty": "is empty", "lfs": "a pointer of Git LFS", "folder": "is a folder", "zeroed": "the checksum of "}
    for name, path in broken(tmp_path, weights).items():
        with pytest.raises(CheckpointError, match=said.get(name.split(".")[0], "is damaged")) as stop:
            load(path)
        assert str(stop.value).startswith(str(path)), name
        assert "weights_only" not in str(stop.value)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another shape": (
        lambda one: one.update({QKV: torch.ones(2, 3)}),
        f"does not fit the model: {QKV} is [2, 3] and has to be [144, 48].",
    ),
    "another prefix": (
        lambda one: one.update({f"backbone.{name}": one.pop(name) for name in list(one)}),
        "does not fit the model: it lacks cls_token, pos_embed, patch_embed.proj.weight and",
    ),
    "a missing norm": (lambda one: one.pop("norm.weight"), "it lacks norm.weight"),
    "NaN": (lambda one: one["norm.bias"][3:4].fill_(torch.nan), "weights that are NaN or infinite: norm.bias"),
    "infinite in a block": (lambda one: one[QKV][0].fill_(torch.inf), f"NaN or infinite: {QKV}"),
    "whole numbers": (lambda one: one.update({QKV: one[QKV].to(torch.int8)}), f"{QKV} (torch.int8,"),
    "complex numbers": (lambda one: one.update({QKV: one[QKV].to(torch.complex64)}), f"{QKV} (torch.complex64,"),
    "text": (lambda one: one.update(note="x"), "something else than weights: note"),
    "nothing": (lambda one: one.clear(), "holds no weights"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_weights_that_do_not_fit_are_named(weights: dict[str, Tensor], tmp_path: Path, kind: str) -> None:
    change, message = CHANGES[kind]
    bad = {name: value.clone() for name, value in weights.items()}
    change(bad)
    torch.save(bad, tmp_path / "bad.pth")
    with pytest.raises(CheckpointError) as stop:
        load(tmp_path / "bad.pth")
    assert str(stop.value).startswith(str(tmp_path / "bad.pth"))
    assert message in str(stop.value)


def test_what_model_kwargs_add_starts_at_random_and_a_warning_says_so(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match=r"has no blocks\.0\.ls1\.gamma, .* and 3 more: what model_kwargs add to"):
        net = load(tmp_path / "weights.pth", init_values=0.5)
    assert torch.equal(net.get_parameter(QKV), weights[QKV])


def test_pickled_objects_are_not_opened_nor_advised_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "path": Path("x")}, tmp_path / "objects.pth")
    words = [*SMALL_RUN, f"--model.pretrained={tmp_path / 'objects.pth'}"]
    sentence = refusal(lambda: cli.train(ROOT / "configs" / "digits.yaml", words), capsys)
    assert f"error: {tmp_path / 'objects.pth'} holds Python objects that could run code" in sentence


@pytest.mark.parametrize("key", ["checkpoint_path", "pretrained_cfg_overlay"])
def test_weights_are_named_by_pretrained_alone(key: str) -> None:
    value: Any = "x.pth" if key == "checkpoint_path" else {"file": "x.pth"}
    with pytest.raises(InputError, match="model_kwargs say where weights are"):
        ViTClassifier(NAME, 10, pretrained=False, model_kwargs={**KWARGS, key: value})
    config = {"pretrained_cfg_overlay": {"mean": (0.1, 0.2, 0.3), "file": None}}
    module = ViTClassifier(NAME, 10, pretrained=False, model_kwargs={**KWARGS, **config})
    assert module.data_config["mean"] == (0.1, 0.2, 0.3)
