"""The functional core of the metrics: tensors in, one number per image out."""

from litcam.metrics.functional.adcc import ADCC_SCORES, adcc, adcc_scores
from litcam.metrics.functional.box_accuracy import IOU_LEVELS, box_overlaps
from litcam.metrics.functional.class_discrimination import CLASS_SCORES, class_discrimination, own_regions
from litcam.metrics.functional.fills import FillOptions
from litcam.metrics.functional.forwards import Precision
from litcam.metrics.functional.localization import LOCALIZATION_SCORES, PAPER_EPSILON, localization
from litcam.metrics.functional.perturbation import PROTOCOLS, Curve, Protocol, find_protocol, perturbation_curves
from litcam.metrics.functional.pixel_precision import pixel_average_precision, pixel_histograms
from litcam.metrics.functional.segmentation import segmentation
from litcam.metrics.functional.thresholds import NUM_THRESHOLDS, otsu_thresholds

__all__ = [
    "ADCC_SCORES",
    "CLASS_SCORES",
    "IOU_LEVELS",
    "LOCALIZATION_SCORES",
    "NUM_THRESHOLDS",
    "PAPER_EPSILON",
    "PROTOCOLS",
    "Curve",
    "FillOptions",
    "Precision",
    "Protocol",
    "adcc",
    "adcc_scores",
    "box_overlaps",
    "class_discrimination",
    "find_protocol",
    "localization",
    "otsu_thresholds",
    "own_regions",
    "perturbation_curves",
    "pixel_average_precision",
    "pixel_histograms",
    "segmentation",
]
