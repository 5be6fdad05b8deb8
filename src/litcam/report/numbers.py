"""Names and numbers as people read them, and which way a score is better."""

import math
from typing import Any

LOWER_IS_BETTER = frozenset({"morf", "deletion", "positive", "drop", "complexity", "tsi", "degenerate"})
MISSING = "–"  # noqa: RUF001  # the en dash of an empty cell

_SHOWN = {
    "iou": "IoU",
    "lerf": "LeRF",
    "morf": "MoRF",
    "abpc": "ABPC",
    "adcc": "ADCC",
    "pxap": "PxAP",
    "miou": "mIoU",
    "map": "mAP",
    "maxboxaccv2": "MaxBoxAccV2",
}


def lower_is_better(score: str) -> bool:
    """Whether less of a score is better, by the words of its name."""
    return not LOWER_IS_BETTER.isdisjoint(score.lower().split("_"))


def spoken(name: str) -> str:
    """A score's name in words: ``mask_iou`` becomes ``mask IoU``."""
    return " ".join(_SHOWN.get(word, word) for word in name.split("_"))


def method_parts(method: str) -> tuple[str, str]:
    """A method's name and its options: ``reciprocam:kernel=dirac`` becomes ``reciprocam`` and ``kernel=dirac``."""
    name, _, options = method.partition(":")
    return name, options


def finite(value: Any) -> float | None:
    """A number, or None for what is none: missing, NaN or infinite."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return None
    return float(value)


def number(value: float | None, digits: int = 3) -> str:
    """A number in few characters: 0.513, 12.3, 1,234."""
    if value is None:
        return MISSING
    if float(value).is_integer() and abs(value) >= 2:
        return f"{value:,.0f}"
    places = digits if abs(value) < 10 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{places}f}"


def per_cent(share: float | None) -> str:
    """A share as per cent: 91.6 %."""
    return MISSING if share is None else f"{100 * share:.1f} %"
