"""Checkpoints and weights: read as data, never as code, and checked; every refusal names the file and the reason."""

import io
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from packaging.version import InvalidVersion, Version
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from litcam.errors import CheckpointError, brief, some
from litcam.files import write_whole

_RUN = {"state_dict": dict, "hyper_parameters": dict, "pytorch-lightning_version": str}
_TRAINING = {"optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict}
_KINDS = {**_RUN, **_TRAINING, "datamodule_hyper_parameters": dict, "global_step": int, "epoch": int}
_ANOTHER = "take another, such as last.ckpt of the same run"
_WEIGHTS = "a file of weights is .safetensors, or what torch.save writes"
_load_into = nn.Module.load_state_dict


def read_checkpoint(path: str | Path, to_resume: bool = False) -> dict[str, Any]:
    """Load a checkpoint of train.py onto the CPU.

    Args:
        path: of the file.
        to_resume: whether the state of the training is needed besides the weights.

    Raises:
        CheckpointError: if the file does not exist, is damaged, would run code when loaded, or was not written by a
            litcam run.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"There is no checkpoint {str(path)!r}; a run keeps its own in its checkpoints folder.")
    _check_file(path)
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is damaged or not a checkpoint; {_ANOTHER}.")
    _check_records(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise _unsafe(path) from error
    except Exception as error:  # whatever a reader makes of bytes that nobody has written
        raise CheckpointError(f"{path} is damaged or not a checkpoint; {_ANOTHER}.") from error
    bare = "to start from bare weights, give the file as --model.pretrained"
    if missing := _RUN.keys() - (checkpoint if isinstance(checkpoint, dict) else {}).keys():
        raise CheckpointError(f"{path} was not written by a litcam run (it has no {some(missing)}); {bare}.")
    if to_resume and (missing := {name for name in _TRAINING if checkpoint.get(name, []) == []}):
        raise CheckpointError(f"{path} holds no state of a training to go on with (no {some(missing)}); {bare}.")
    _check_kinds(path, checkpoint)
    return dict(checkpoint)


def read_weights(path: str | Path) -> dict[str, Any]:
    """The weights of a file by name, as timm finds them in what training programs write; of a litcam run its net's.

    Raises:
        CheckpointError: if the file is damaged, would run code when loaded, or holds no weights.
    """
    path = Path(path)
    _check_file(path)
    if zipfile.is_zipfile(path):
        _check_records(path)
    try:
        weights = load_state_dict(str(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or not a file of safetensors ({brief(error)}).") from error
    except Exception as error:  # whatever a reader makes of bytes that nobody has written
        if zipfile.is_zipfile(path) and isinstance(error.__cause__, UnpicklingError):
            raise _unsafe(path) from error
        raise CheckpointError(f"{path} is damaged or holds no weights; {_WEIGHTS}.") from error
    odd = [name for name, value in weights.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if odd or not weights:
        what = f"something else than weights: {some(odd)}" if odd else "no weights"
        raise CheckpointError(f"{path} holds {what}; they have to be tensors by name.")
    inside = "net."  # of a ViTClassifier
    return {
        name.removeprefix(inside) if all(name.startswith(inside) for name in weights) else name: value
        for name, value in weights.items()
    }


def load_weights(
    module: nn.Module, weights: Mapping[str, Any], source: object, lacking: Collection[str] = (), more: bool = False
) -> None:
    """Load weights into a module.

    Args:
        module: takes them.
        weights: by name.
        source: where they are from, for the error.
        lacking: names that may be missing.
        more: whether there may be others, which are left out.

    Raises:
        CheckpointError: if they are not those of the module, with the names and shapes, or are not finite.
    """
    own = module.state_dict()
    shared = {name: value for name, value in weights.items() if name in own}
    odd = [f"{name} ({_brief_value(value)})" for name, value in shared.items() if not _fills(value, own[name])]
    if odd:
        raise CheckpointError(f"{source} holds something else than floating-point weights: {some(odd)}.")
    wrong = [
        f"{name} is {list(value.shape)} and has to be {list(own[name].shape)}"
        for name, value in shared.items()
        if value.shape != own[name].shape
    ]
    missing = [name for name in own if name not in weights and name not in lacking]
    unknown = [] if more else [str(name) for name in weights if name not in own]
    troubles = {"": wrong, "it lacks ": missing, "it has besides ": unknown}
    if told := [f"{words}{some(names)}" for words, names in troubles.items() if names]:
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(told)}.")
    _load_into(module, weights, strict=False)
    check_finite(module, source)


def check_finite(module: nn.Module, source: object) -> None:
    """Raise CheckpointError if a weight of a module is NaN or infinite."""
    bad = [
        name
        for name, value in module.state_dict().items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if bad:
        raise CheckpointError(
            f"{source} holds weights that are NaN or infinite: {some(bad)}; take others, of a checkpoint from before "
            "the training diverged."
        )


@contextmanager
def loading(source: object, lacking: Callable[[nn.Module, Mapping[str, Any]], Collection[str]]) -> Iterator[None]:
    """Let what timm loads into a net go through :func:`load_weights`, so that it is checked and named.

    Args:
        source: where the weights are from.
        lacking: of a net and weights gives the names that may be missing, where timm wants no exact fit.
    """

    def load(net: nn.Module, weights: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        load_weights(net, weights, source, () if strict else lacking(net, weights), more=not strict)
        return _load_into(net, {}, strict=False)

    nn.Module.load_state_dict = load  # type: ignore[assignment, method-assign]  # timm tells its log alone what it did not find
    try:
        yield
    finally:
        nn.Module.load_state_dict = _load_into  # type: ignore[method-assign]


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place: Lightning copies them there, so that a full disk leaves a torn one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        whole = io.BytesIO()  # torch.save itself hides what the system says of a file
        torch.save(checkpoint, whole)
        write_whole(Path(path), whole.getbuffer())


def _check_file(path: Path) -> None:
    """Raise CheckpointError for what no reader has to be asked about."""
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder or a device, not a file; name a file in it.")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from error
    if not start:
        raise CheckpointError(f"{path} is empty; {_ANOTHER}, or get it again.")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the file itself; get that by git lfs pull.")


def _check_records(path: Path) -> None:
    """Raise CheckpointError unless every record of a zip is there once and as it was written: torch does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            wrong = archive.testzip()
    except Exception as error:  # whatever zipfile makes of bytes that nobody has written
        raise CheckpointError(f"{path} is damaged ({brief(error)}); {_ANOTHER}.") from error
    if wrong is not None:
        raise CheckpointError(f"{path} is damaged (the checksum of {wrong} is wrong); {_ANOTHER}.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise CheckpointError(f"{path} is damaged (it holds {some(twice)} more than once); {_ANOTHER}.")


def _check_kinds(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless what a run writes is of the kind that it writes."""
    for name, kind in _KINDS.items():
        value = checkpoint.get(name, kind())
        if not isinstance(value, kind):
            wrong = f"is {_brief_value(value)}, not {kind.__name__}"
        elif isinstance(value, dict) and (odd := [key for key in value if not isinstance(key, str)]):
            wrong = f"has keys that are no names: {some(odd)}"
        else:
            continue
        raise CheckpointError(f"{path} was not written by a litcam run: its {name} {wrong}.")
    for key in ("class_names", "class_ids"):
        names = checkpoint.get(key)
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise CheckpointError(f"{path} was not written by a litcam run: its {key} are no list of names.")
    if len(checkpoint.get("class_ids") or ()) not in (0, len(checkpoint.get("class_names") or ())):
        raise CheckpointError(f"{path} was not written by a litcam run: it has not one of class_ids for each name.")
    try:
        Version(checkpoint["pytorch-lightning_version"])
    except InvalidVersion as error:
        raise CheckpointError(f"{path} was not written by a litcam run: {error}.") from error


def _unsafe(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} holds Python objects that could run code when loaded, so it was not opened; "
        "litcam takes tensors, numbers and text alone."
    )


def _fills(value: Any, place: Tensor) -> bool:
    """Whether a value is a tensor of the kind of a module's, so that nothing is lost when it is copied there."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta or value.is_quantized:
        return False
    return value.is_floating_point() == place.is_floating_point() and not value.is_complex()


def _brief_value(value: object) -> str:
    """What a value is, in a word or two."""
    if isinstance(value, Tensor):
        return f"{value.dtype}, {value.layout}, {value.device}"
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__
