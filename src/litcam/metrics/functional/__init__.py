"""The functional core of the metrics: tensors in, one number per image out."""

from litcam.metrics.functional.class_discrimination import CLASS_SCORES, class_discrimination, own_regions
from litcam.metrics.functional.localization import LOCALIZATION_SCORES, PAPER_EPSILON, localization
from litcam.metrics.functional.perturbation import STEPS, perturbation_curves

__all__ = [
    "CLASS_SCORES",
    "LOCALIZATION_SCORES",
    "PAPER_EPSILON",
    "STEPS",
    "class_discrimination",
    "localization",
    "own_regions",
    "perturbation_curves",
]
