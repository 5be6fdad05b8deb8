"""Lightning callbacks that watch a Vision Transformer's explanations; the maths is in explainers and metrics."""

from litcam.callbacks.epoch_seed import EpochSeed
from litcam.callbacks.run_summary import RunSummary

__all__ = ["EpochSeed", "RunSummary"]
