"""Metrics by name, as evaluate.py takes them, and what an evaluation can give to each."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from litcam.data import Batch, true_regions
from litcam.data.batch import ANNOTATIONS, VOID, Regions
from litcam.errors import InputError, check_choice
from litcam.explainers import Explainer, parse_options
from litcam.metrics import ADCC, ClassDiscrimination, Focus, Localization, MaxBoxAcc, Perturbation, PxAP, Segmentation
from litcam.metrics.image_metric import ImageMetric, Measured
from litcam.vit.trace import AttentionTrace


@dataclass(frozen=True)
class _Kind:
    """What a name stands for: a metric, the true regions that it takes, and what the names of its scores begin with."""

    metric: Callable[..., ImageMetric]
    regions: tuple[Regions, ...] = ()  # the first one if not told otherwise
    prefix: str = ""
    defaults: tuple[tuple[str, Any], ...] = ()


_KINDS = {
    "localization": _Kind(Localization, ("boxes", "masks")),
    "mask_localization": _Kind(Localization, ("masks", "boxes"), "mask_", (("prediction", "mask"),)),
    "segmentation": _Kind(Segmentation, ("masks", "boxes")),
    "max_box_acc": _Kind(MaxBoxAcc, ("boxes",)),
    "pxap": _Kind(PxAP, ("masks", "boxes")),
    "focus": _Kind(Focus, ("boxes", "masks")),
    "class_discrimination": _Kind(ClassDiscrimination, ("masks", "boxes")),
    "perturbation": _Kind(Perturbation),
    "adcc": _Kind(ADCC),
}
DEFAULT_METRICS = ("localization", "mask_localization", "perturbation", "class_discrimination")


def list_metrics() -> list[str]:
    """The names of the metrics that evaluate.py takes."""
    return list(_KINDS)


@dataclass(frozen=True)
class Scorer:
    """A metric in an evaluation.

    Attributes:
        name: as it was asked for.
        metric: in its initial state.
        regions: the true regions it compares with, if any.
        skip_wrong: whether it leaves out what is predicted wrongly.
        prefix: what the names of its scores begin with.
    """

    name: str
    metric: ImageMetric
    regions: Regions | None
    skip_wrong: bool
    prefix: str

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        against = "" if self.regions is None else f"; against {self.regions}"
        return self.metric.description + against + ("; wrong predictions left out" if self.skip_wrong else "")

    @property
    def is_costly(self) -> bool:
        """Whether it calls the model many times for each image."""
        return isinstance(self.metric, Perturbation)

    @property
    def needs(self) -> str | None:
        """The key that batches have to have for it."""
        return None if self.regions is None else ANNOTATIONS[self.regions]

    def measure(self, inputs: "MetricInputs", wanted: Tensor) -> tuple[Measured, Tensor]:
        """Measure some of the M pairs of image and class: ``wanted``, bool [M].

        Returns:
            What was measured, and of which pairs its rows are, [n]; a row of an image is of its first class.
        """
        if isinstance(self.metric, ClassDiscrimination):
            return self._tell_apart(self.metric, inputs, wanted)
        chosen = inputs.select(wanted)
        arguments = inspect.signature(self.metric.measure).parameters
        measured = self.metric.measure(**{name: chosen.ask(name, self.regions) for name in arguments})
        return measured, wanted.nonzero()[:, 0][measured.kept]

    def _tell_apart(
        self, metric: ClassDiscrimination, inputs: "MetricInputs", wanted: Tensor
    ) -> tuple[Measured, Tensor]:
        """Measure the images of several classes, all of which are wanted."""
        counts = inputs.images.bincount()
        counts[inputs.images[~wanted]] = 0
        measured, places = metric.nothing(inputs.heatmaps.device), [counts.new_zeros(0)]
        for count in counts[counts > 1].unique().tolist():
            chosen = counts[inputs.images] == count
            pairs = inputs.select(chosen)
            regions = pairs.ask("regions", self.regions)
            more = metric.measure(*(x.unflatten(0, (-1, count)) for x in (pairs.heatmaps, regions)))  # [n, K, H, W]
            measured = measured.join(more)
            places.append(chosen.nonzero()[::count, 0][more.kept])
        return measured, torch.cat(places)


def create_scorer(text: str, mean: tuple[float, ...], std: tuple[float, ...], multi_label: bool, seed: int) -> Scorer:
    """A metric from one word of a command line: ``perturbation:protocol=road``.

    Beside the options of the metric there are ``regions=boxes`` (or ``masks``) for those that take true regions, and
    ``wrong_predictions=skip``.

    Args:
        text: name and options; values are read as YAML.
        mean: per channel, of the normalisation of the images, for the metrics that need it.
        std: per channel, of the same.
        multi_label: whether the model's classes do not exclude each other.
        seed: of the metrics that draw.

    Raises:
        InputError: for an unknown name or option, or a value out of its range.
    """
    name, *words = text.split(":")
    check_choice("metric", name, tuple(_KINDS))
    kind, options = _KINDS[name], parse_options(words)
    known = [key for key in inspect.signature(kind.metric).parameters if key != "kwargs"]
    own = ["wrong_predictions", *(["regions"] if kind.regions else [])]
    for option in options:
        if option not in [*known, *own]:
            raise InputError(f"{name} has no option {option!r}; it has {', '.join([*known, *own])}.")
    regions = options.pop("regions", kind.regions[0]) if kind.regions else None
    if regions is not None:
        check_choice("regions", regions, kind.regions)
    wrong = options.pop("wrong_predictions", "keep")
    check_choice("wrong_predictions", wrong, ("keep", "skip"))
    given = {"mean": mean, "std": std, "multi_label": multi_label, "seed": seed}
    given = {key: value for key, value in given.items() if key in known}
    metric = kind.metric(**{**dict(kind.defaults), **given, **options})
    prefix = f"{metric.protocol.name}_" if isinstance(metric, Perturbation) and metric.protocol.name != "agcam" else ""
    return Scorer(text, metric, regions, wrong == "skip", kind.prefix + prefix)


@dataclass(frozen=True)
class MetricInputs:
    """What metrics can ask for, by the names of their arguments, of M pairs of image and class.

    Attributes:
        explainer: whose maps are scored.
        trace: of the M images.
        batch: which they come from.
        images: where they stand in it [M].
        targets: the classes explained [M].
        heatmaps: [M, H, W] in [0, 1].
    """

    explainer: Explainer
    trace: AttentionTrace
    batch: Batch
    images: Tensor
    targets: Tensor
    heatmaps: Tensor

    def select(self, wanted: Tensor) -> "MetricInputs":
        """Some of the pairs: ``wanted`` is bool [M]."""
        if bool(wanted.all()):
            return self
        where = wanted.nonzero()[:, 0]
        return MetricInputs(
            self.explainer,
            self.trace.select(where),
            self.batch,
            self.images[where],
            self.targets[where],
            self.heatmaps[where],
        )

    def ask(self, name: str, regions: Regions | None) -> Any:
        """What a metric calls ``name``, with true regions of a kind."""
        if name == "regions":
            assert regions is not None  # a metric of regions has a kind of them
            return true_regions(self.batch, self.images, self.targets, regions)
        if name == "valid":
            return (self.batch["mask"] != VOID)[self.images] if regions == "masks" else None
        return {
            "heatmaps": self.heatmaps,
            "targets": self.targets,
            "images": self.trace.images,
            "logits": self.trace.logits,
            "net": self.trace.module,
            "boxes": self.boxes,
            "explain": self.explain,
        }[name]

    @cached_property
    def boxes(self) -> Tensor:
        """The true boxes of each pair, numbered by it: [K, 5]."""
        if "boxes" not in self.batch:
            return self.heatmaps.new_zeros(0, 5)
        boxes = self.batch["boxes"]
        belongs = boxes[:, 0].long() == self.images[:, None]  # [M, n]
        if self.batch["label"].ndim == 2:
            belongs &= self.batch["instance_labels"] == self.targets[:, None]
        pair, instance = belongs.nonzero(as_tuple=True)
        return torch.cat([pair[:, None].to(boxes), boxes[instance, 1:]], 1)

    def explain(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps of other images by the same method, at their size."""
        return self.explainer(images, targets).upsample((images.shape[-2], images.shape[-1]))
