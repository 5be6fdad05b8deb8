"""Methods × metrics over a dataset: what evaluate.py prints and writes, from one pass over the images."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from litcam.data import ImageDataModule
from litcam.data.module import Split, UnknownClasses
from litcam.evaluation.measuring import DEFAULT_METHODS, Target, measure
from litcam.evaluation.pages import write_report
from litcam.evaluation.printed import print_results
from litcam.evaluation.results import Evaluation, conclude
from litcam.evaluation.runs import load_run
from litcam.evaluation.scorers import DEFAULT_METRICS, list_metrics

__all__ = [
    "DEFAULT_METHODS",
    "DEFAULT_METRICS",
    "Evaluation",
    "evaluate",
    "list_metrics",
    "load_run",
    "print_results",
    "write_report",
]


def evaluate(
    model: nn.Module,
    datamodule: ImageDataModule,
    explainers: Sequence[str] = DEFAULT_METHODS,
    metrics: Sequence[str] | None = None,
    split: Split = "val",
    target: Target = "true",
    num_images: int | None = None,
    perturbation_images: int | None = 256,
    seed: int = 0,
    folder: str | Path | None = None,
    unknown_classes: UnknownClasses = "raise",
) -> Evaluation:
    """Score explanation methods on every image of a split; one forward per image serves all methods that can share it.

    Where images have several classes, every class of an image is explained and scored, and class discrimination with
    them; a prediction counts as right if it is one of the classes.

    Args:
        model: a Vision Transformer, or a module that holds one, on the device to compute on.
        datamodule: gives the images; it is prepared for the model's data config.
        explainers: methods, each a name with options if wanted: ``"reciprocam:kernel=dirac"``.
        metrics: each a name of :func:`list_metrics` with options if wanted: ``"perturbation:protocol=road"``; None
            takes ``DEFAULT_METRICS``, as far as the data have what they need.
        split: ``"train"``, ``"val"`` or ``"test"``.
        target: explain the ``"true"`` or the ``"predicted"`` class of each image.
        num_images: a fixed random subset of this size; None takes all.
        perturbation_images: images of the perturbation curves, a fixed random subset (18 forwards per image and
            method); None takes all, 0 none.
        seed: of these subsets and of the metrics that draw.
        unknown_classes: ``"raise"`` refuses images of classes that the model does not know by name; ``"skip"`` leaves
            these classes out, and the images that have no other, and counts them in the results.
        folder: keeps what was measured, so that a call that was stopped goes on when it is repeated; the results are
            the same to the last bit. One evaluation at a time has it.

    Returns:
        The results, and tables of the images and classes. A score has its 95 % bootstrap interval over images.
        Degenerate maps (constant, or with NaN) are in no score; ``degenerate`` counts them.

    Raises:
        InputError: for an unknown method, metric or option, for a metric that was asked for but whose boxes or masks
            the data lack, and for a folder that cannot be written or that another evaluation is writing.
        UnsupportedModelError: if the model cannot be explained.
    """
    images = (num_images, perturbation_images)
    arguments = (model, datamodule, explainers, metrics, split, target, *images, seed, folder, unknown_classes)
    with measure(*arguments) as measurements:
        return conclude(measurements, datamodule.label_names)
