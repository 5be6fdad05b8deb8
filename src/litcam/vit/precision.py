"""In which precision a model computes: what its images have to be in, and how far rounding reaches."""

import torch
from torch import Tensor, nn

from litcam.vit.context import eager, evaluating

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ROUNDINGS = 12  # that a sum over a whole net may be off by, in epsilons of the coarsest number in it; 4 were seen


def in_precision_of(module: nn.Module, images: Tensor) -> Tensor:
    """Images in the precision that a module takes them in: that of its weights.

    A module with weights in several precisions casts somewhere on its way; it is tried on one image which it takes.
    """
    precisions = {parameter.dtype for parameter in module.parameters() if parameter.dtype in FLOATS}
    if len(precisions) > 1:
        tried = dict.fromkeys([images.dtype, *precisions])
        with torch.autocast(images.device.type, enabled=False):
            return next((images.to(each) for each in tried if takes(module, images[:1].to(each))), images)
    return images.to(next(iter(precisions), images.dtype))


def takes(module: nn.Module, images: Tensor) -> bool:
    """Whether a module has an answer to images."""
    try:
        with evaluating(module), eager(), torch.no_grad():
            module(images)
    except Exception:
        return False
    return True


def coarsest(module: nn.Module, *others: Tensor | torch.dtype) -> torch.dtype:
    """The float type of the fewest digits among those of a module's weights and of others."""
    each = (other.dtype if isinstance(other, Tensor) else other for other in (*module.parameters(), *others))
    found = [dtype for dtype in each if dtype in FLOATS]
    return max(found, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def tolerance(precision: torch.dtype) -> float:
    """How far, as a share, a sum over a whole net may be off by rounding."""
    return max(1e-3, _ROUNDINGS * torch.finfo(precision).eps)
