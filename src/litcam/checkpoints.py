"""Reading checkpoints: only data, never code; every refusal names the file and the remedy. Writing them whole."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from litcam.errors import CheckpointError
from litcam.files import write_whole


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of train.py onto the CPU.

    Raises:
        CheckpointError: if the file does not exist, is damaged, would run code when loaded, or was not written by a
            litcam run.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {str(path)!r}; a run keeps its own in its checkpoints folder.")
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint; take another, such as last.ckpt of the same run."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects that could run code when loaded, so it was not opened; "
            "litcam's own checkpoints hold tensors, numbers and text alone."
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"{path} is damaged; take another, such as last.ckpt of the same run.") from error
    missing = {"state_dict", "hyper_parameters"} - set(checkpoint if isinstance(checkpoint, dict) else ())
    if missing:
        raise CheckpointError(
            f"{path} was not written by a litcam run (it has no {', '.join(sorted(missing))}); "
            "to start from bare weights, give the file as --model.pretrained."
        )
    return dict(checkpoint)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place: Lightning copies them there, so that a full disk leaves a torn one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        whole = io.BytesIO()  # torch.save itself hides what the system says of a file
        torch.save(checkpoint, whole)
        write_whole(Path(path), whole.getbuffer())
