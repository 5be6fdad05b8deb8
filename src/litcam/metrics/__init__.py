"""Metrics of explanations as torchmetrics: tensors in, numbers out, usable without the rest of litcam."""

from litcam.metrics.adcc import ADCC
from litcam.metrics.box_accuracy import MaxBoxAcc
from litcam.metrics.class_discrimination import ClassDiscrimination
from litcam.metrics.focus import Focus
from litcam.metrics.localization import Localization
from litcam.metrics.map_similarity import MapSimilarity
from litcam.metrics.perturbation import Perturbation
from litcam.metrics.pixel_precision import PxAP
from litcam.metrics.randomization import RandomizationSimilarity, randomization_similarity
from litcam.metrics.reliance import Reliance
from litcam.metrics.segmentation import Segmentation

__all__ = [
    "ADCC",
    "ClassDiscrimination",
    "Focus",
    "Localization",
    "MapSimilarity",
    "MaxBoxAcc",
    "Perturbation",
    "PxAP",
    "RandomizationSimilarity",
    "Reliance",
    "Segmentation",
    "randomization_similarity",
]
