"""Metrics of explanations as torchmetrics: tensors in, numbers out, usable without the rest of litcam."""

from litcam.metrics.class_discrimination import ClassDiscrimination
from litcam.metrics.localization import Localization
from litcam.metrics.perturbation import Perturbation

__all__ = ["ClassDiscrimination", "Localization", "Perturbation"]
