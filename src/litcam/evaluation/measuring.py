"""Methods × metrics over a dataset: what evaluate.py prints and writes, from one pass over the images."""

import csv
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from litcam.attention import AttentionTrace, record
from litcam.checkpoints import read_checkpoint
from litcam.classifier import ViTClassifier
from litcam.data import (
    Batch,
    ImageDataModule,
    box_regions,
    labelled_pairs,
    mask_regions,
    read_batch,
    regions_of,
)
from litcam.data.module import Split
from litcam.errors import CheckpointError, InputError
from litcam.explainers import Explainer, create_explainer, parse_explainer
from litcam.heatmaps import is_degenerate
from litcam.metrics.functional import (
    LOCALIZATION_SCORES,
    class_discrimination,
    localization,
    own_regions,
    perturbation_curves,
)
from litcam.vit import find_vit

SCHEMA_VERSION = 1
DEFAULT_METHODS = ("agcam", "rollout", "random", "center")
RESAMPLES = 1000  # of the bootstrap
PROTOCOLS = {
    "localization": "agcam: boxes of the map > 0.5 against the filled true boxes, exact ratios, all images, true class",
    "mask_localization": "the map > 0.5 itself against the pixel masks, all images, true class",
    "perturbation": "agcam: pixels set to 0 in normalised space by tenths, mean of 11 points, true class",
    "class_discrimination": "share of each class's map, and of its maximum, on its own pixels among those of all "
    "classes of the image; a class-blind map has 1/K for K classes",
}

Scores = dict[str, list[Tensor]]


def evaluate(
    module: nn.Module,
    datamodule: ImageDataModule,
    methods: Sequence[str] = DEFAULT_METHODS,
    split: Split = "val",
    perturbation_images: int | None = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Score explanation methods on every image of a split; one forward per image serves all methods that can share it.

    Where images have several classes, every class of an image is explained and scored, and class discrimination with
    them; a prediction counts as right if it is one of the classes. Perturbation follows a softmax probability: it is
    left out for a multi-label classifier.

    Args:
        module: a Vision Transformer, or a module that holds one, on the device to compute on.
        datamodule: gives the images; it is prepared for the module's data config.
        methods: explainers, each a name with options if wanted: ``"reciprocam:kernel=dirac"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        perturbation_images: images of the perturbation curves, a fixed random subset (18 forwards per image and
            method); None takes all, 0 none.
        seed: of that subset and of the bootstrap.

    Returns:
        The results as ``results.json`` has them: under ``["methods"][explainer][metric]`` the ``value``, a mean over
        images, between ``low`` and ``high``, its 95 % bootstrap interval over images. Degenerate maps (constant, or
        with NaN) are in no mean; ``degenerate`` counts them.

    Raises:
        InputError: for an unknown method or option.
        UnsupportedModelError: if the module cannot be explained.
    """
    vit = find_vit(module)
    parsed = {text: parse_explainer(text) for text in methods}
    explainers = {text: create_explainer(name, module, **options) for text, (name, options) in parsed.items()}
    datamodule.use_data_config(getattr(module, "data_config", datamodule.data_config))
    loader = datamodule.evaluation_dataloader(split)
    total = len(loader.dataset)  # type: ignore[arg-type]  # ours have a length
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    perturbed = torch.zeros(total, dtype=torch.bool)
    if not getattr(module, "hparams", {}).get("multi_label", False):
        perturbed[order[: total if perturbation_images is None else perturbation_images]] = True
    scores: dict[str, Scores] = {name: {} for name in explainers}
    correct, seen = 0, 0
    device = next(module.parameters()).device
    for raw_batch in track(loader, description=f"{split}: {', '.join(explainers)}", console=Console(stderr=True)):
        batch = read_batch(datamodule.normalize(move_data_to_device(raw_batch, device)), multi_label=True)
        vit.check_images(batch["image"])
        trace = record(vit, batch["image"], {explainer: explainer.read for explainer in explainers.values()})
        images, classes = labelled_pairs(batch)
        correct += int((trace.logits.argmax(1)[images] == classes).sum())  # one of the classes, if there are several
        subset = perturbed[seen : seen + len(batch["label"])]
        seen += len(batch["label"])
        for name, explainer in explainers.items():
            for metric, values in _score_batch(explainer, trace, batch, subset).items():
                scores[name].setdefault(metric, []).append(values.cpu())
    return {
        "schema_version": SCHEMA_VERSION,
        "split": split,
        "num_images": seen,
        "accuracy": correct / seen,
        "protocols": PROTOCOLS,
        "methods": {name: _summarize(metrics, seed) for name, metrics in scores.items()},
    }


def evaluate_checkpoint(
    ckpt_path: str | Path,
    methods: Sequence[str] = DEFAULT_METHODS,
    split: Split = "val",
    output: str | Path | None = None,
    perturbation_images: int | None = 256,
    num_workers: int | None = None,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a checkpoint of train.py on its own data; print the table, write ``results.json`` and ``results.csv``.

    Args:
        ckpt_path: model and data are built from this file alone.
        methods: explainers, each a name with options if wanted.
        split: of the checkpoint's data.
        output: folder of the results; by default ``evaluation/<checkpoint>-<split>`` in the run folder.
        perturbation_images: see :func:`evaluate`.
        num_workers: loading processes, if other than in the training.
        data: arguments of the data module that are to differ from the training's.

    Raises:
        CheckpointError: if the file cannot be used.
        InputError: for an unknown method or an output folder that cannot be written.
    """
    path = Path(ckpt_path)
    overrides = {**(data or {}), **({} if num_workers is None else {"num_workers": num_workers})}
    module, datamodule = load_run(path, overrides)
    name = "-".join([path.stem, split, *(f"{key}={value}" for key, value in (data or {}).items())])
    folder = Path(output) if output else path.resolve().parent.parent / "evaluation" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder {folder} cannot be written ({error.strerror}); name another: --output."
        ) from error
    module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    scores = evaluate(module, datamodule, methods, split, perturbation_images)
    results = {"checkpoint": str(path), "data": dict(data or {}), **scores}
    write_results(results, folder)
    console = Console()
    console.print(results_table(results))
    console.print(f"Written: {folder / 'results.json'} and results.csv", highlight=False, soft_wrap=True)
    return results


def load_run(path: str | Path, data: Mapping[str, Any] | None = None) -> tuple[ViTClassifier, ImageDataModule]:
    """Classifier and data module as a checkpoint describes them; pretrained weights are not loaded again.

    Args:
        path: of the checkpoint.
        data: arguments of the data module that are to differ from the training's.

    Raises:
        CheckpointError: if the file is not a checkpoint of train.py.
        InputError: for an argument that the data module does not have.
    """
    checkpoint = read_checkpoint(path)
    arguments = {key: value for key, value in checkpoint["hyper_parameters"].items() if not key.startswith("_")}
    data_arguments = dict(checkpoint.get("datamodule_hyper_parameters", {}))
    data_class = _data_class(data_arguments.pop("_class_path", None))
    data_arguments.pop("_instantiator", None)
    if data_class is None:
        raise CheckpointError(f"{path} names no data module of litcam; only checkpoints of train.py can be evaluated.")
    known = list(inspect.signature(data_class).parameters)
    for key in data or {}:
        if key not in known:
            raise InputError(f"{data_class.__name__} has no argument {key!r}; it has {', '.join(known)}.")
    try:
        module = ViTClassifier(**{**arguments, "pretrained": False})
        module.load_state_dict(checkpoint["state_dict"])
        datamodule = data_class(**{**data_arguments, **(data or {})})
    except (TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} was written by another version of litcam, or by another program.") from error
    datamodule.use_data_config(module.data_config)
    return module, datamodule


def write_results(results: Mapping[str, Any], folder: Path) -> None:
    """``results.json``, and ``results.csv`` with a row per method and metric."""
    (folder / "results.json").write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "metric", "value", "low", "high", "num_images"])
        for method, metrics in results["methods"].items():
            for metric, entry in metrics.items():
                writer.writerow(
                    [method, metric, *(entry.get(key, "") for key in ("value", "low", "high", "num_images"))]
                )


def results_table(results: Mapping[str, Any]) -> Table:
    """Metrics as rows, methods as columns, with half the interval's width where there is one."""
    methods: Mapping[str, Mapping[str, Any]] = results["methods"]
    title = f"{results['split']}: {results['num_images']} images, accuracy {results['accuracy']:.3f}"
    table = Table(title=title, title_justify="left", caption="mean ± half the 95 % interval", caption_justify="left")
    table.add_column("")
    shown = (
        *("iou", "mask_iou", "pointing_game", "energy_inside", "lerf", "morf", "abpc"),
        *("class_energy", "class_pointing", "degenerate"),
    )
    for name in methods:
        table.add_column(name, justify="right")
    for metric in shown:
        if any(metric in metrics for metrics in methods.values()):
            table.add_row(metric.replace("_", " "), *(_cell(metrics.get(metric)) for metrics in methods.values()))
    return table


def _score_batch(explainer: Explainer, trace: AttentionTrace, batch: Batch, subset: Tensor) -> dict[str, Tensor]:
    """Every metric of one method on one batch: float64 per image and class; what does not apply to one is left out."""
    images, classes = labelled_pairs(batch)  # [M]
    trace = trace.select(images)
    heatmaps = explainer.explain(trace, classes).upsample((trace.images.shape[-2], trace.images.shape[-1]))
    degenerate = is_degenerate(heatmaps)
    scores = {"degenerate": degenerate.double()}
    regions = {kind: _regions(batch, images, classes, kind) for kind in ("boxes", "masks")}
    for kind, prediction, prefix in (("boxes", "boxes", ""), ("masks", "mask", "mask_")):
        region = regions[kind]
        if region is not None:
            kept = ~degenerate & region.flatten(1).any(1)
            if kept.any():
                localized = localization(heatmaps[kept], region[kept], prediction=prediction)
                scores.update({prefix + name: localized[name] for name in LOCALIZATION_SCORES})
    if regions["masks"] is not None:
        scores |= _tell_apart(images, heatmaps, regions["masks"], degenerate)
    kept = ~degenerate & subset.to(degenerate.device)[images]
    if kept.any():
        lerf, morf = perturbation_curves(
            trace.module, trace.images[kept], heatmaps[kept], classes[kept], trace.logits[kept]
        )
        scores |= {"lerf": lerf.mean(1), "morf": morf.mean(1), "abpc": lerf.mean(1) - morf.mean(1)}
    return scores


def _tell_apart(images: Tensor, heatmaps: Tensor, regions: Tensor, degenerate: Tensor) -> dict[str, Tensor]:
    """Class discrimination of the images of several classes, from the maps [M, H, W] of pairs of image and class."""
    counts = images.bincount()
    parts: dict[str, list[Tensor]] = {}
    for count in counts[counts > 1].unique().tolist():
        chosen = counts[images] == count
        maps, own = (x[chosen].unflatten(0, (-1, count)) for x in (heatmaps, regions))  # [n, K, H, W]
        kept = ~degenerate[chosen].view(-1, count).any(1) & own_regions(own).flatten(2).any(2).all(1)
        if kept.any():
            told_apart = class_discrimination(maps[kept], own[kept])
            comparable = ~told_apart["class_energy"].isnan()  # some map is zero on all classes: nothing to say
            for name, values in told_apart.items():
                parts.setdefault(name, []).append(values[comparable])
    return {name: torch.cat(values) for name, values in parts.items()}


def _regions(batch: Batch, images: Tensor, classes: Tensor, kind: str) -> Tensor | None:
    """The true region of each pair of image and class: bool [M, H, W]; None without annotation."""
    if {"boxes": "boxes", "masks": "mask"}[kind] not in batch:
        return None
    if batch["label"].ndim == 1:
        return (box_regions if kind == "boxes" else mask_regions)(batch)
    return regions_of(batch, images, classes, "boxes" if kind == "boxes" else "masks")


def _summarize(scores: Scores, seed: int) -> dict[str, dict[str, float | int]]:
    """Mean, interval and number of images of every metric; the count of degenerate maps has no interval."""
    summary: dict[str, dict[str, float | int]] = {}
    for metric, parts in scores.items():
        values = torch.cat(parts).numpy()
        if metric == "degenerate":
            summary[metric] = {"value": int(values.sum()), "num_images": len(values)}
            continue
        low, high = bootstrap_interval(values, seed)
        summary[metric] = {"value": float(values.mean()), "low": low, "high": high, "num_images": len(values)}
    return summary


def bootstrap_interval(values: np.ndarray[Any, np.dtype[np.float64]], seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean, over 1,000 resamples of the images."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _cell(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return "-"
    if "low" not in entry:
        return str(entry["value"])
    return f"{entry['value']:.3f} ± {(entry['high'] - entry['low']) / 2:.3f}"


def _data_class(class_path: str | None) -> type[ImageDataModule] | None:
    """The data module of litcam with this path; nothing is imported for a checkpoint's sake."""
    classes = list(ImageDataModule.__subclasses__())
    for known in classes:
        classes.extend(known.__subclasses__())
    names = {name: known for known in classes for name in (f"{known.__module__}.{known.__name__}", known.__name__)}
    return names.get(class_path or "") or names.get((class_path or "").rsplit(".", 1)[-1])
