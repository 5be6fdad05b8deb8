"""One pass over the images of a split: every method explains, every metric measures, part by part."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from litcam.data import Batch, ImageDataModule, labelled_pairs, read_batch
from litcam.data.batch import missing_annotation, take_images
from litcam.data.module import Split, UnknownClasses
from litcam.errors import InputError, check_at_least, check_choice
from litcam.evaluation.parts import Parts
from litcam.evaluation.scorers import DEFAULT_METRICS, MetricInputs, Scorer, create_scorer
from litcam.explainers import Explainer, create_explainers
from litcam.heatmaps import is_degenerate, on_grid
from litcam.lock import only_writer
from litcam.logits import check_classifies, check_logits, finite_logits, num_targets, predicted_classes
from litcam.memory import images_at_once
from litcam.metrics.functional.forwards import class_probability
from litcam.metrics.functional.perturbation import is_predicted
from litcam.progress import Advance, progress, say
from litcam.vit.inputs import check_images, fitting
from litcam.vit.model import ViT, find_vit
from litcam.vit.recorder import record

Target = Literal["true", "predicted"]
DEFAULT_METHODS = ("agcam", "rollout", "random", "center")


@dataclass(frozen=True)
class Measurements:
    """What was measured on the images of a split.

    Attributes:
        parts: the numbers, batch by batch; see :func:`measure` for their names.
        explainers: the methods by name.
        scorers: the metrics.
        datamodule: gave the images.
        split: whose images these are.
        target: which classes are explained.
        num_images: of the split, or of the subset that was asked for.
    """

    parts: Parts
    explainers: Mapping[str, Explainer]
    scorers: Sequence[Scorer]
    datamodule: ImageDataModule
    split: Split
    target: Target
    num_images: int


@contextmanager
def measure(
    module: nn.Module,
    datamodule: ImageDataModule,
    explainers: Sequence[str],
    metrics: Sequence[str] | None = None,
    split: Split = "val",
    target: Target = "true",
    num_images: int | None = None,
    perturbation_images: int | None = 256,
    seed: int = 0,
    folder: str | Path | None = None,
    unknown_classes: UnknownClasses = "raise",
) -> Iterator[Measurements]:
    """Explain and score the images of a split, going on where an earlier call with the same arguments was stopped.

    Until the context ends nobody else can write to the folder.

    Each part has, of its M pairs of image and class: ``index``, ``id``, ``label``, ``target``, ``predicted``,
    ``probability`` (of the predicted class), ``target_probability``, ``correct``; of its images ``hits`` (whether the
    predicted class is one of the image's); of method i ``i.maps`` (float16, of the patches, scaled to [0, 1]),
    ``i.degenerate`` and ``i.seconds``; of metric j ``i.j.rows``, ``i.j.places`` (the pairs they are of) and
    ``i.j.left_out``.
    """
    check_choice("target", target, ("true", "predicted"))
    for name, number, least in (("num_images", num_images, 1), ("perturbation_images", perturbation_images, 0)):
        if number is not None:
            check_at_least(name, number, least)
    vit = find_vit(module)
    check_classifies(module, "An evaluation")
    device = next(module.parameters()).device
    multi_label = bool(getattr(module, "hparams", {}).get("multi_label", False))
    by_name = create_explainers(explainers, module)
    datamodule.use_model(module, unknown_classes)
    mean, std = (tuple(map(float, datamodule.data_config[key])) for key in ("mean", "std"))
    wanted = DEFAULT_METRICS if metrics is None else metrics
    scorers = [create_scorer(text, mean, std, multi_label, seed) for text in wanted]
    total = len(datamodule.dataset(split))  # type: ignore[arg-type]  # ours have a length
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    indices = order[:num_images].sort().values
    perturbed = torch.isin(indices, order[:num_images][:perturbation_images])
    plan = {
        "weights": _digest(module),
        "data": {key: value for key, value in getattr(datamodule, "hparams", {}).items() if key != "num_workers"},
        "data_module": f"{type(datamodule).__module__}.{type(datamodule).__qualname__}",
        "data_config": datamodule.data_config,
        "total": total,
        "classes": [datamodule.label_names, datamodule.class_map().indices],
        "split": split,
        "methods": list(by_name),
        "metrics": [scorer.name for scorer in scorers],
        "target": target,
        "num_images": num_images,
        "perturbation_images": perturbation_images,
        "seed": seed,
        "device": device.type,
        "versions": {"format": 2, "torch": torch.__version__},
    }
    batches, perturbed_of = (values.split(datamodule.batch_size) for values in (indices, perturbed))
    with nullcontext() if folder is None else only_writer(folder):
        parts = Parts(folder, plan, [batch.tolist() for batch in batches])
        if parts.refused:
            _tell_refused(parts)
        if parts.missing:
            blank = torch.zeros(1, 3, *datamodule.image_size, device=device)
            with fitting(vit.root, check_images(vit, blank)):
                at_once = images_at_once(vit, blank)
            required = metrics is not None
            state = _Pass(vit, device, datamodule, by_name, scorers, target, multi_label, required, at_once)
            loader = datamodule.evaluation_dataloader(split, [i for k in parts.missing for i in batches[k].tolist()])
            _run(state, loader, parts, batches, perturbed_of)
        yield Measurements(parts, by_name, scorers, datamodule, split, target, len(indices))


def _tell_refused(parts: Parts) -> None:
    """Say which parts are not taken."""
    names = ", ".join(parts.refused[:3]) + (", …" if len(parts.refused) > 3 else "")
    say(
        f"{len(parts.refused)} of the parts in {parts.folder} are damaged or were not measured by this evaluation "
        f"({names}); what is missing is measured again.",
    )


def _run(
    state: "_Pass", loader: DataLoader[Any], parts: Parts, batches: Sequence[Tensor], perturbed: Sequence[Tensor]
) -> None:
    """Measure the batches that are missing, showing the progress."""
    total, missing = (sum(len(batches[k]) for k in numbers) for numbers in (range(len(batches)), parts.missing))
    with progress(", ".join(state.explainers), total, total - missing) as advance:
        for number, batch in zip(list(parts.missing), loader, strict=False):
            with finite_logits(state.vit.root):
                part = state.measure(batch, batches[number], perturbed[number], advance)
            parts.add(number, part)
    if parts.missing:
        raise _other_images(0, len(batches[parts.missing[0]]))


def _other_images(given: int, planned: int) -> InputError:
    return InputError(
        f"The data module's loader gave {given} images in a batch of {planned}: evaluation_dataloader has to give the "
        "images that it is asked for, each once."
    )


@dataclass
class _Pass:
    """How a batch is measured."""

    vit: ViT
    device: torch.device
    datamodule: ImageDataModule
    explainers: Mapping[str, Explainer]
    scorers: Sequence[Scorer]
    target: Target
    multi_label: bool
    required: bool
    at_once: int

    def measure(self, raw_batch: Any, indices: Tensor, perturbed: Tensor, advance: Advance) -> dict[str, NDArray[Any]]:
        """The part of one batch, whose images are ``indices`` of the dataset; few of them at a time."""
        batch = read_batch(raw_batch, multi_label=True)
        if len(batch["label"]) != len(indices):
            raise _other_images(len(batch["label"]), len(indices))
        self._check_annotations(batch)
        several = self.target == "true" and batch["label"].ndim == 2
        pairs = batch["label"].sum(1) if several else torch.ones(len(batch["label"]))
        measured = []
        for some in _few(pairs.tolist(), self.at_once):
            measured.append(self._measure(take_images(batch, some), indices[some], perturbed[some]))
            advance(some.stop - some.start)
        return _join(measured)

    def _measure(self, few: Batch, indices: Tensor, perturbed: Tensor) -> dict[str, NDArray[Any]]:
        device = self.device
        batch = self.datamodule.normalize(move_data_to_device(few, device))
        check_images(self.vit, batch["image"])
        began = _now(device)
        trace = record(self.vit, batch["image"], {explainer: explainer.read for explainer in self.explainers.values()})
        forward = _now(device) - began
        check_logits(trace.logits, "images", [str(name) for name in batch.get("id", indices)])
        predicted = predicted_classes(trace.logits, regression=False)
        _check_labels(batch["label"], num_targets(trace.logits, regression=False))
        hits = _belongs(predicted, batch["label"])
        images, targets = labelled_pairs(batch)
        labels = targets
        if self.target == "predicted":
            images = torch.arange(len(hits), device=device)
            targets = predicted
            labels = _label_of(batch["label"], predicted)
        trace = trace.select(images)
        correct = is_predicted(trace.logits, targets, True) == 1 if self.multi_label else hits[images]
        probability = class_probability(trace.logits, predicted[images], self.multi_label)
        part = {
            "index": indices.to(device)[images],
            "label": labels,
            "target": targets,
            "predicted": predicted[images],
            "probability": probability,
            "target_probability": class_probability(trace.logits, targets, self.multi_label),
            "correct": correct,
            "hits": hits,
        }
        measured = {name: values.cpu().numpy() for name, values in part.items()}
        measured["id"] = np.array([str(batch["id"][image]) for image in images.tolist()] if "id" in batch else indices)
        size = (batch["image"].shape[-2], batch["image"].shape[-1])
        for number, explainer in enumerate(self.explainers.values()):
            began = _now(device)
            explanation = explainer.explain(trace, targets)
            seconds = [forward, _now(device) - began, len(hits), len(images)]
            heatmaps = explanation.upsample(size)
            inputs = MetricInputs(explainer, trace, batch, images, targets, heatmaps)
            measured[f"{number}.maps"] = on_grid(explanation.heatmaps, trace.grid).half().cpu().numpy()
            measured[f"{number}.degenerate"] = is_degenerate(heatmaps).cpu().numpy()
            measured[f"{number}.seconds"] = np.array([seconds])
            for place, scorer in enumerate(self.scorers):
                if scorer.needs is None or scorer.needs in batch:
                    wanted = perturbed.to(device)[images] if scorer.is_costly else torch.ones_like(correct)
                    wrong = wanted & ~correct if scorer.skip_wrong else torch.zeros_like(correct)
                    measured |= _score(scorer, inputs, wanted & ~wrong, wrong, f"{number}.{place}.")
        return measured

    def _check_annotations(self, batch: Batch) -> None:
        """Raise InputError if a metric that was asked for has nothing to compare with."""
        for scorer in self.scorers:
            if self.required and scorer.regions is not None and scorer.needs not in batch:
                raise missing_annotation(f"{scorer.name} compares with", scorer.regions, "leave this metric out")


def _few(pairs: Sequence[float], most: int) -> Iterator[slice]:
    """Images one after the other, so many at a time that they have at most so many pairs; at least one image.

    Those without a pair go with others: nothing is explained of them.
    """
    start, taken = 0, 0.0
    for place, more in enumerate(pairs):
        if taken and more and taken + more > most:
            yield slice(start, place)
            start, taken = place, 0.0
        taken += more
    yield slice(start, len(pairs))


def _join(measured: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """What was measured of some images and of those after them, as of all together."""
    before = np.cumsum([0, *(len(part["index"]) for part in measured)])
    joined = {}
    for name in measured[0]:
        arrays = [part[name] for part in measured]
        if name.endswith(".places"):
            arrays = [places + first for places, first in zip(arrays, before, strict=False)]
        summed = name.endswith((".seconds", ".left_out"))
        joined[name] = sum(arrays[1:], arrays[0]) if summed else np.concatenate(arrays)
    return joined


def _score(scorer: Scorer, inputs: MetricInputs, wanted: Tensor, wrong: Tensor, prefix: str) -> dict[str, NDArray[Any]]:
    """Rows of a metric, the pairs they are of, and how many were left out: degenerate, without region, wrong."""
    left_out = [0, 0, int(wrong.sum())]
    measured, places = scorer.metric.nothing(wanted.device), wanted.nonzero()[:0, 0]
    if bool(wanted.any()):
        measured, places = scorer.measure(inputs, wanted)
        left_out[:2] = [int(measured.counts.get(f"num_{name}", 0)) for name in ("degenerate", "without_region")]
    return {
        f"{prefix}rows": measured.rows.cpu().numpy(),
        f"{prefix}places": places.cpu().numpy(),
        f"{prefix}left_out": np.array([left_out]),
    }


def _check_labels(labels: Tensor, classes: int) -> None:
    """Raise InputError if multi-hot labels are of another number of classes than the model's."""
    if labels.ndim == 2 and labels.shape[1] != classes:
        raise InputError(
            f"The labels are of {labels.shape[1]} classes, but the model has {classes}: the data module has to give "
            "bool [B, C] with a column for each of the model's classes."
        )


def _belongs(predicted: Tensor, labels: Tensor) -> Tensor:
    """Whether the predicted class is the image's, or one of the image's: bool [B]."""
    return predicted == labels if labels.ndim == 1 else labels.gather(1, predicted[:, None])[:, 0]


def _label_of(labels: Tensor, predicted: Tensor) -> Tensor:
    """The image's class; of several the predicted one if it is among them, else the first: [B]."""
    if labels.ndim == 1:
        return labels
    return torch.where(_belongs(predicted, labels), predicted, labels.int().argmax(1))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _digest(module: nn.Module) -> str:
    """A number of the weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(json.dumps([name, list(tensor.shape), str(tensor.dtype)]).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
