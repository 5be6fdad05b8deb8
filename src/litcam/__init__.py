"""litcam: fine-tune Vision Transformers with PyTorch Lightning and watch what they look at.

The names below are loaded when they are first used, so that ``import litcam`` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litcam.explainers import Explanation, create_explainer, list_explainers

__all__ = ["Explanation", "create_explainer", "list_explainers"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'litcam' has no attribute {name!r}")
    return getattr(import_module("litcam.explainers"), name)
