"""litcam: fine-tune Vision Transformers with PyTorch Lightning and watch what they look at.

The names below are loaded when they are first used, so that ``import litcam`` is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litcam.evaluation import Evaluation, evaluate
    from litcam.explainers import Explanation, create_explainer, list_explainers
    from litcam.logits import declare_regression

__all__ = ["Evaluation", "Explanation", "create_explainer", "declare_regression", "evaluate", "list_explainers"]

_HOMES = {
    "Evaluation": "litcam.evaluation",
    "Explanation": "litcam.explainers",
    "create_explainer": "litcam.explainers",
    "declare_regression": "litcam.logits",
    "evaluate": "litcam.evaluation",
    "list_explainers": "litcam.explainers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'litcam' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
