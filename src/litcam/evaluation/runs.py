"""What is evaluated: checkpoints of train.py, or a model and data as a config names them."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from litcam.checkpoints import read_checkpoint
from litcam.classifier import ViTClassifier
from litcam.data import ImageDataModule
from litcam.errors import CheckpointError, InputError


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
    arguments = {key: value for key, value in checkpoint["hyper_parameters"].items() if not key.startswith("_")}
    trained_on = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    class_path = trained_on.pop("_class_path", None)
    trained_on.pop("_instantiator", None)
    data = dict(data or {})
    if "class_path" not in data and _data_class(class_path) is None:
        raise CheckpointError(f"{path} names no data module of litcam; only checkpoints of train.py can be evaluated.")
    try:
        module = ViTClassifier(**{**arguments, "pretrained": False})
        module.load_state_dict(checkpoint["state_dict"])
        module.on_load_checkpoint(checkpoint)
        datamodule = create_data(data if "class_path" in data else {"class_path": class_path, **trained_on, **data})
    except (TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} was written by another version of litcam, or by another program.") from error
    datamodule.use_data_config(module.data_config)
    return module, datamodule


def create_data(arguments: Mapping[str, Any]) -> ImageDataModule:
    """A data module of litcam, from its ``class_path`` and its arguments.

    Raises:
        InputError: if there is no such data module, or it has no such argument.
    """
    class_path = arguments.get("class_path")
    data_class = _data_class(class_path)
    if data_class is None:
        raise InputError(
            f"There is no data module {class_path!r}; choose one of "
            f"{', '.join(sorted(f'litcam.data.{known.__name__}' for known in _data_classes()))}."
        )
    rest = {key: value for key, value in arguments.items() if key != "class_path"}
    known = list(inspect.signature(data_class).parameters)
    for key in rest:
        if key not in known:
            raise InputError(f"{data_class.__name__} has no argument {key!r}; it has {', '.join(known)}.")
    return data_class(**rest)


def create_model(arguments: Mapping[str, Any], datamodule: ImageDataModule) -> ViTClassifier:
    """A classifier that no checkpoint holds, from its arguments.

    Raises:
        InputError: for an argument that it does not have, or a value out of its range.
    """
    known = list(inspect.signature(ViTClassifier).parameters)
    for key in arguments:
        if key not in known:
            raise InputError(f"ViTClassifier has no argument {key!r}; it has {', '.join(known)}.")
    module = ViTClassifier(**arguments)
    datamodule.use_data_config(module.data_config)
    return module


def find_checkpoints(paths: Sequence[str | Path]) -> list[Path]:
    """The checkpoints of these files and run folders, those of a folder in the order of their steps.

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
    return found


def _data_class(class_path: str | None) -> type[ImageDataModule] | None:
    """The data module of litcam with this path; nothing is imported for a checkpoint's sake."""
    names = {
        name: known for known in _data_classes() for name in (f"{known.__module__}.{known.__name__}", known.__name__)
    }
    return names.get(class_path or "") or names.get((class_path or "").rsplit(".", 1)[-1])


def _data_classes() -> list[type[ImageDataModule]]:
    """Every data module that can be made."""
    classes = list(ImageDataModule.__subclasses__())
    for known in classes:
        classes.extend(known.__subclasses__())
    return [known for known in classes if not inspect.isabstract(known)]
