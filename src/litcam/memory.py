"""How many images can be explained together in bounded memory."""

import torch
from torch import Tensor

from litcam.vit.model import ViT
from litcam.vit.recorder import record

_AT_MOST = 3 * 2**28  # bytes on a CPU; what else there is comes to about as much again
_SHARE = 0.25  # of a GPU's memory
_TIMES = 2.0  # the bytes of the hungriest methods in those that autograd keeps of a forward


def images_at_once(vit: ViT, image: Tensor) -> int:
    """How many images like this one may be explained together; at least 1.

    Methods that differentiate keep every activation of their images. How large those are is observed on one forward.

    Args:
        vit: the model.
        image: normalised float [1, 3, H, W].

    Raises:
        UnsupportedModelError: if the model's attention cannot be seen.
    """
    available = _AT_MOST
    if image.device.type == "cuda":
        available = int(_SHARE * torch.cuda.get_device_properties(image.device).total_memory)
    return max(1, int(available / (_TIMES * activation_bytes(vit, image))))


def activation_bytes(vit: ViT, images: Tensor) -> int:
    """What autograd keeps of a forward of these images, in bytes; without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in vit.root.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trace = record(vit, images, {}, "full")
    del trace  # kept until here, so that no storage takes the place of another
    return sum(size for place, size in kept.items() if place not in weights)
