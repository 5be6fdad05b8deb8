"""Pictures: images as people see them, and the names of their classes, for the callbacks that draw."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from timm.data import resolve_model_data_config
from torch import Tensor

from litcam.callbacks.shared import Explained


class Pictures:
    """What the trainer's data module says of its images; without one what the model and the indices say.

    Args:
        trainer: whose data module it is.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
        owners = ((datamodule, "label_names"), (trainer.lightning_module, "class_names"), (datamodule, "class_names"))
        names = (getattr(owner, attribute, None) for owner, attribute in owners)
        self.class_names: Sequence[str] | None = next(filter(None, names), None)
        self.data_config: dict[str, Any] | None = getattr(datamodule, "data_config", None)

    def name(self, label: int) -> str:
        """The name of a class."""
        return self.class_names[label] if self.class_names and label < len(self.class_names) else str(label)

    def pixels(self, explained: Explained) -> NDArray[np.uint8]:
        """The images [n, H, W, 3]."""
        config = self.data_config or resolve_model_data_config(explained.trace.vit.net)
        return to_pixels(explained.trace.images, config["mean"], config["std"])


def to_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.uint8]:
    """Normalised images [B, 3, H, W] as pixels [B, H, W, 3]; NaN becomes black."""
    scale, shift = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (std, mean))
    pixels = ((images.float() * scale + shift) * 255).round().nan_to_num(0).clamp(0, 255)
    return np.ascontiguousarray(pixels.byte().permute(0, 2, 3, 1).cpu().numpy())
