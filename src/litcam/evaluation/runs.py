"""What is evaluated: checkpoints of train.py, or a model and data as a config names them."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args

from torch import Tensor

import litcam.data
from litcam.checkpoints import load_weights, read_checkpoint
from litcam.classifier import ViTClassifier
from litcam.data import ImageDataModule
from litcam.data.imagenet import timm_classes
from litcam.errors import CheckpointError, InputError, LitcamError, brief


def load_run(path: str | Path, data: Mapping[str, Any] | None = None) -> tuple[ViTClassifier, ImageDataModule]:
    """Classifier and data module as a checkpoint describes them; pretrained weights are not loaded again.

    Args:
        path: of the checkpoint.
        data: arguments of the data module that are to differ from the training's; with ``class_path`` another data
            module with these arguments alone.

    Raises:
        CheckpointError: if the file is not a checkpoint of train.py.
        InputError: for an argument that the data module does not have.
    """
    checkpoint = read_checkpoint(path)
    trained_on = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    class_path = trained_on.pop("_class_path", None)
    trained_on.pop("_instantiator", None)
    data = dict(data or {})
    if "class_path" not in data and _data_class(class_path) is None:
        what = f"was trained on {class_path!r}, which litcam does not have and does not import"
        raise CheckpointError(
            f"{path} {'names no data module' if class_path is None else what}; name the data to take: "
            f"--data.class_path with one of {_choices()}."
        )
    module = _classifier_of(checkpoint, path)
    try:
        datamodule = create_data(data if "class_path" in data else {"class_path": class_path, **trained_on, **data})
    except Exception as error:  # of any kind, by what the file has for numbers
        if data and isinstance(error, LitcamError):  # of what the user has named
            raise
        reason = error if isinstance(error, LitcamError) else f"its arguments make no data module ({brief(error)})."
        raise CheckpointError(f"{path}: {reason}") from error
    datamodule.use_model(module)
    return module, datamodule


def create_data(arguments: Mapping[str, Any]) -> ImageDataModule:
    """A data module of litcam, from its ``class_path`` and its arguments.

    Raises:
        InputError: if there is no such data module, or it has no such argument.
    """
    class_path = arguments.get("class_path")
    data_class = _data_class(class_path)
    if data_class is None:
        raise InputError(f"There is no data module {class_path!r}; choose one of {_choices()}.")
    rest = {key: value for key, value in arguments.items() if key != "class_path"}
    _check_kinds(data_class, rest)
    return data_class(**rest)


def create_model(arguments: Mapping[str, Any], datamodule: ImageDataModule) -> ViTClassifier:
    """A classifier that no checkpoint holds, from its arguments.

    Raises:
        InputError: for an argument that it does not have, or a value out of its range.
    """
    _check_kinds(ViTClassifier, arguments)
    module = ViTClassifier(**arguments)
    if arguments.get("pretrained", True) is True:
        module.class_names, module.class_ids = _classes_of_head(module)
    datamodule.use_model(module)
    return module


def _classes_of_head(module: ViTClassifier) -> tuple[list[str] | None, list[str] | None]:
    """Names and ids of the classes of timm's own head, where the model has kept it and timm knows them."""
    config: Mapping[str, Any] = module.net.pretrained_cfg
    size = module.hparams["num_classes"]
    if config.get("num_classes") != size:
        return None, None
    names = list(config.get("label_names") or ())
    names, ids = (names, names) if names else timm_classes(size)
    return (names, ids) if len(names) == size else (None, None)


def find_checkpoints(paths: Sequence[str | Path]) -> list[Path]:
    """The checkpoints of these files and run folders, each once, those of a folder in the order of their steps.

    Of several in a folder with the same step, such as the best and the last, the first by name is taken.

    Raises:
        CheckpointError: for a folder without checkpoints, or a file that is none.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        by_step: dict[int, Path] = {}
        for file in sorted(path.rglob("*.ckpt")):
            by_step.setdefault(int(read_checkpoint(file).get("global_step", 0)), file)
        if not by_step:
            raise CheckpointError(f"There is no checkpoint in {path}; a run keeps its own in its checkpoints folder.")
        found += [by_step[step] for step in sorted(by_step)]
    each: dict[Path, Path] = {}
    for path in found:
        each.setdefault(path.resolve(), path)
    return list(each.values())


def _classifier_of(checkpoint: Mapping[str, Any], path: str | Path) -> ViTClassifier:
    """The classifier of a checkpoint; pretrained weights are not loaded again."""
    arguments = {key: value for key, value in checkpoint["hyper_parameters"].items() if not key.startswith("_")}
    compiled = "_orig_mod."  # in the names of what torch.compile had wrapped
    weights = {name.replace(compiled, ""): value for name, value in checkpoint["state_dict"].items()}
    _check_sizes(arguments, weights, path)
    try:
        _check_kinds(ViTClassifier, arguments)
        module = ViTClassifier(**{**arguments, "pretrained": False})
    except Exception as error:  # of any kind, by what the file has for numbers
        reason = error if isinstance(error, LitcamError) else f"{brief(error)}."
        raise CheckpointError(f"{path} has hyper-parameters that make no classifier: {reason}") from error
    load_weights(module, weights, path)
    try:
        module.on_load_checkpoint(dict(checkpoint))
    except Exception as error:  # of any kind, by what the file has besides
        raise CheckpointError(f"{path} was not written by this version of litcam ({brief(error)}).") from error
    return module


def _check_kinds(made: type, arguments: Mapping[str, Any]) -> None:
    """Raise InputError unless a class has all of these arguments, and what is a plain number or text there is one."""
    parameters = inspect.signature(made).parameters
    for name, value in arguments.items():
        if name not in parameters:
            raise InputError(f"{made.__name__} has no argument {name!r}; it has {', '.join(parameters)}.")
        hint = parameters[name].annotation
        kinds = set(get_args(hint)) if isinstance(hint, UnionType) else {hint}
        taken = kinds | {int} if float in kinds else kinds
        if kinds <= {bool, int, float, str, NoneType} and type(value) not in taken:
            wanted = " or ".join(sorted(kind.__name__.replace("NoneType", "null") for kind in kinds))
            raise InputError(f"{name} is {value!r}; {wanted} is needed.")


def _check_sizes(arguments: Mapping[str, Any], weights: Mapping[str, Any], path: str | Path) -> None:
    """Raise CheckpointError for a size beyond all that the file holds: no memory and no time would do to build it."""
    kwargs = arguments.get("model_kwargs")
    sizes = {"num_classes": arguments.get("num_classes"), **(kwargs if isinstance(kwargs, dict) else {})}
    most = sum(weight.numel() for weight in weights.values() if isinstance(weight, Tensor))
    for name, value in sizes.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and number > (len(weights) if name == "depth" else most):
                raise CheckpointError(
                    f"{path} has hyper-parameters that make no classifier: {name} is {number}, but it holds {most} "
                    f"weights in {len(weights)} tensors."
                )


def _data_class(class_path: object) -> type[ImageDataModule] | None:
    """The data module with this path, or the only one with this name; nothing is imported for a checkpoint's sake."""
    known = _data_classes()
    exact = [one for one in known if class_path in (f"{one.__module__}.{one.__qualname__}", _path(one))]
    named = [one for one in known if class_path == one.__name__]
    return exact[-1] if exact else named[0] if len(named) == 1 else None


def _path(known: type[ImageDataModule]) -> str:
    """Where a data module is found: for litcam's own in litcam.data."""
    ours = getattr(litcam.data, known.__name__, None) is known
    return f"{'litcam.data' if ours else known.__module__}.{known.__name__}"


def _choices() -> str:
    return ", ".join(sorted(map(_path, _data_classes())))


def _data_classes() -> list[type[ImageDataModule]]:
    """Every data module that can be made."""
    classes = list(ImageDataModule.__subclasses__())
    for known in classes:
        classes.extend(known.__subclasses__())
    return [known for known in classes if not inspect.isabstract(known)]
