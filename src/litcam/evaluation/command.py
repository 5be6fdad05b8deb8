"""What evaluate.py does: checkpoints in, printed tables, files and a report out; or images, or stored maps in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from litcam.callbacks.drift_figures import Filmstrip
from litcam.classifier import ViTClassifier
from litcam.data import ImageDataModule
from litcam.data.module import Split, UnknownClasses
from litcam.errors import InputError, check_at_least
from litcam.evaluation import DEFAULT_METHODS, evaluate
from litcam.evaluation.measuring import Target
from litcam.evaluation.pages import write_report
from litcam.evaluation.printed import print_results
from litcam.evaluation.results import Evaluation
from litcam.evaluation.runs import create_data, create_model, find_checkpoints, load_run
from litcam.evaluation.stored_drift import RunImages, find_histories, redraw
from litcam.lock import only_writer
from litcam.own_images import explain_images
from litcam.progress import print_line


def evaluate_runs(
    ckpt_path: Sequence[str | Path] | None = None,
    model: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    metrics: Sequence[str] | None = None,
    split: Split = "val",
    target: Target = "true",
    output: str | Path | None = None,
    num_images: int | None = None,
    perturbation_images: int | None = 256,
    report_images: int = 200,
    num_workers: int | None = None,
    seed: int = 0,
    unknown_classes: UnknownClasses = "raise",
) -> list[Evaluation]:
    """Score checkpoints, or a model without one; print the tables, write results, tables of the images and a report.

    Every checkpoint has its folder, ``evaluation/<checkpoint>-<split>`` in the run folder, with what
    :meth:`Evaluation.write` writes and ``report.html``; several share a folder with a report and ``drift.csv`` beside.

    Args:
        ckpt_path: checkpoints of train.py, or run folders, all of whose checkpoints are taken.
        model: arguments of the classifier, where there is no checkpoint; it needs ``data`` with a ``class_path``.
        data: arguments of the data module that are to differ from the training's; with ``class_path`` other data.
        methods: explainers, each a name with options if wanted.
        metrics: see :func:`litcam.evaluation.evaluate`.
        split: of the data.
        target: explain the ``"true"`` or the ``"predicted"`` class.
        output: folder of the results, if not in the run folder.
        num_images: a fixed random subset of the images; None takes all.
        perturbation_images: the same for the perturbation curves.
        report_images: how many images the gallery of the report shows.
        num_workers: loading processes, if other than in the training.
        seed: of the subsets.
        unknown_classes: ``"raise"`` or ``"skip"``, for classes that the model does not know by name.

    Raises:
        CheckpointError: if a file cannot be used.
        InputError: for an unknown method, metric, option or class, and an output folder that cannot be written or that
            another evaluation is writing.
    """
    check_at_least("report_images", report_images, least=0)
    given = dict(data or {})
    changes = given if num_workers is None else {**given, "num_workers": num_workers}
    subjects = _subjects(ckpt_path, model or {}, split, given, Path(output) if output else None)
    together = subjects[0].folder
    if len(subjects) > 1:
        together = Path(output) if output else together.parent / f"comparison-{split}"
    console, evaluations = Console(), []
    with only_writer(*(subject.folder for subject in subjects), together):
        for subject in subjects:
            module, datamodule = subject.load(changes)
            module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
            rest = (num_images, perturbation_images, seed, subject.folder / "parts", unknown_classes)
            found = evaluate(module, datamodule, methods, metrics, split, target, *rest)
            about = {"checkpoint": subject.checkpoint, "model": module.hparams["model"], "data": given}
            found = replace(found, results={**about, **found.results})
            found.write(subject.folder)
            evaluations.append(found)
            if len(subjects) > 1:
                print_line(console, subject.name, style="bold")
            print_results(found.results, found.cost, console)
        by_name = {subject.name: found for subject, found in zip(subjects, evaluations, strict=True)}
        page = write_report(together, by_name, report_images, seed)
    print_line(console, f"Written: {page}")
    for subject in subjects:
        print_line(console, f"  and {subject.folder / 'results.json'}, images.csv, …")
    return evaluations


def explain_own_images(
    images: Sequence[str | Path],
    ckpt_path: Sequence[str | Path] | None = None,
    model: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    targets: Sequence[str | int] | None = None,
    output: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Explain images of one's own by one checkpoint, see :func:`litcam.own_images.explain_images`.

    Args:
        images: files and folders.
        ckpt_path: one checkpoint of train.py.
        model: see :func:`evaluate_runs`, as for ``data`` and ``methods``.
        data: whose transforms and class names are taken.
        methods: explainers.
        targets: classes to explain, by name or index; None explains the predicted ones.
        output: folder of the results, by default ``explanations`` in the run folder.

    Raises:
        CheckpointError: if a file cannot be used.
        InputError: for several checkpoints, and as :func:`litcam.own_images.explain_images` does.
    """
    subject, *others = _subjects(ckpt_path, model or {}, "val", {}, None)
    if others:
        raise InputError("Images are explained by one checkpoint; name one of them as ckpt_path.")
    module, datamodule = subject.load(data or {})
    module.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    folder = Path(output) if output else subject.folder.parent.parent / "explanations"
    return explain_images(module, datamodule, images, methods, folder, targets)


def redraw_drift(
    drift: str | Path,
    data: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    filmstrip: Filmstrip | None = None,
) -> list[Path]:
    """Draw the drift of a run anew from the maps that DriftMonitor left, and print where it is; no model is run.

    Every explainer has its folder, with ``drift.png`` and ``drift_curves.png`` as DriftMonitor draws them and
    ``drift.csv``, a row per epoch with all similarities to all references. The images of the filmstrip are read again
    from the data of the run's checkpoint; where these are not there any more its tiles are black, and a sentence says
    why.

    Args:
        drift: a run folder, or ``drift/<explainer>`` in it.
        data: arguments of the data module that are to differ from the training's, where the data have moved.
        output: folder of the explainers' folders, by default ``evaluation/drift`` in the run folder.
        filmstrip: which images and epochs it shows, and how; None as DriftMonitor does by default.

    Returns:
        The explainers' folders.

    Raises:
        InputError: if there are no maps, maps of one epoch alone or a damaged file, if ``data`` are not those of the
            run, and for an output folder that cannot be written, that somebody else is writing or that holds the maps
            themselves.
    """
    histories = find_histories(drift)
    run = next(iter(histories)).parent.parent
    output = Path(output) if output else run / "evaluation" / "drift"
    folders = [output / source.name for source in histories]
    for folder in folders:
        if folder.resolve() in histories:
            raise InputError(f"{folder} has the run's own maps and pictures; name another folder: --output.")
    images, console = RunImages(run, data or {}), Console()
    with only_writer(*folders):
        for history, folder in zip(histories.values(), folders, strict=True):
            redraw(folder.name, history, images, filmstrip or Filmstrip(), folder)
            print_line(console, f"Written: {folder / 'drift.png'}, drift_curves.png and drift.csv")
    if images.trouble is not None:
        print_line(console, f"The images of the filmstrip are black: {images.trouble}")
    return folders


@dataclass(frozen=True)
class _Subject:
    """What is evaluated, and where its results belong."""

    name: str
    checkpoint: str | None
    model: Mapping[str, Any]
    folder: Path

    def load(self, data: Mapping[str, Any]) -> tuple[ViTClassifier, ImageDataModule]:
        """The model and its data."""
        if self.checkpoint is not None:
            return load_run(self.checkpoint, data)
        datamodule = create_data(data)
        return create_model(self.model, datamodule), datamodule


def _subjects(
    ckpt_path: Sequence[str | Path] | None,
    model: Mapping[str, Any],
    split: Split,
    data: Mapping[str, Any],
    output: Path | None,
) -> list[_Subject]:
    """What is evaluated, each with a name and a folder of its own."""
    if (ckpt_path is None) == (not model):
        raise InputError("Give either ckpt_path, checkpoints of train.py, or model and data, as a config names them.")
    ending = "-".join([split, *(f"{key}={value}" for key, value in data.items() if key != "class_path")])
    ending = ending.replace("/", "_")
    if ckpt_path is None:
        name = str(model.get("model", "model"))
        return [_Subject(name, None, model, output or Path("runs") / name / "evaluation" / ending)]
    paths = find_checkpoints(ckpt_path)
    names = _names_of(paths)
    folders = [path.resolve().parent.parent / "evaluation" / f"{path.stem}-{ending}" for path in paths]
    if output is not None:
        folders = [output] if len(paths) == 1 else [output / f"{place}-{path.stem}" for place, path in enumerate(paths)]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise InputError(f"The results of {path} and of another checkpoint would lie in {folder}; name --output.")
    return [_Subject(name, str(path), {}, folder) for name, path, folder in zip(names, paths, folders, strict=True)]


def _names_of(paths: Sequence[Path]) -> list[str]:
    """The names of checkpoints, with as many of the folders above their runs' as it takes to tell them apart."""
    full = [(*path.resolve().parent.parent.parts, path.stem) for path in paths]
    for length in range(1, max(map(len, full)) + 1):
        names = ["/".join(parts[-length:]) for parts in full]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
