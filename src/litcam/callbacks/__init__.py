"""Lightning callbacks that watch a Vision Transformer's explanations; the maths is in explainers and metrics."""

from litcam.callbacks.epoch_seed import EpochSeed
from litcam.callbacks.heatmap_logger import HeatmapLogger
from litcam.callbacks.localization_monitor import LocalizationMonitor
from litcam.callbacks.perturbation_monitor import PerturbationMonitor
from litcam.callbacks.run_summary import RunSummary

__all__ = ["EpochSeed", "HeatmapLogger", "LocalizationMonitor", "PerturbationMonitor", "RunSummary"]
