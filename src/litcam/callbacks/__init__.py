"""Lightning callbacks that watch a Vision Transformer's explanations; the maths is in explainers and metrics."""

from litcam.callbacks.drift_monitor import DriftMonitor
from litcam.callbacks.exact_resume import ExactResume
from litcam.callbacks.heatmap_logger import HeatmapLogger
from litcam.callbacks.initial_validation import InitialValidation
from litcam.callbacks.localization_monitor import LocalizationMonitor
from litcam.callbacks.localized_checkpoint import LocalizedCheckpoint
from litcam.callbacks.perturbation_monitor import PerturbationMonitor
from litcam.callbacks.progress_bars import ProgressLines
from litcam.callbacks.reliance_monitor import RelianceMonitor
from litcam.callbacks.run_summary import RunSummary
from litcam.callbacks.shortcut_alarm import ShortcutAlarm
from litcam.callbacks.step_seed import StepSeed

__all__ = [
    "DriftMonitor",
    "ExactResume",
    "HeatmapLogger",
    "InitialValidation",
    "LocalizationMonitor",
    "LocalizedCheckpoint",
    "PerturbationMonitor",
    "ProgressLines",
    "RelianceMonitor",
    "RunSummary",
    "ShortcutAlarm",
    "StepSeed",
]
