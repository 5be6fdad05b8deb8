"""Images of one's own: what a classifier sees in them, and where it looks. Behind ``evaluate.py --images``."""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn import functional as F

from litcam.callbacks.reporting import save_png
from litcam.data import ImageDataModule, ImageFilesDataModule
from litcam.data.classes import Classes, by_place_sentence
from litcam.data.finding import Note, composed, find_files, is_folder
from litcam.data.reading import (
    IMAGE_SUFFIXES,
    BadFileError,
    Pixels,
    bad_file,
    noting,
    printable,
    read_image,
    refuse,
    storable,
)
from litcam.data.transforms import Pipeline, default_eval_transforms
from litcam.errors import InputError, LitcamError, check_at_least, unwritable
from litcam.explainers import Explainer, create_explainers
from litcam.files import write_whole
from litcam.heatmaps import is_degenerate, overlay, upsample
from litcam.lock import only_writer
from litcam.logits import check_classifies, check_logits, class_scores, probabilities
from litcam.memory import images_at_once
from litcam.progress import print_line, say, track
from litcam.vit.inputs import check_images, fitting
from litcam.vit.model import find_vit
from litcam.vit.recorder import record
from litcam.vit.trace import AttentionTrace

SCHEMA_VERSION = 1
LONG_SIDE = 1600  # pixels of an overlay, at most
_SHOWN = 20  # images in the table, and troubles in the list
_LONGEST = 200  # times its width an image may be: resizing its shorter side to the model's takes this much memory
_PROBES = 32  # boxes along each side, to find where a pipeline takes the pixels
_TOLERANCE = 0.01  # of the model's image, by which the boxes may miss that place


@dataclass(frozen=True)
class OwnImage:
    """An image as the model takes it, and as it is drawn.

    Attributes:
        path: of the file.
        stem: what the names of its overlays and maps begin with, as a path in the output folder.
        size: (width, height) of the file, turned upright.
        photo: uint8 [h, w, 3], its long side at most ``LONG_SIDE``.
        pixels: uint8 [3, H, W], out of the eval transforms.
        placement: see :func:`placement`.
    """

    path: Path
    stem: str
    size: tuple[int, int]
    photo: Pixels
    pixels: Tensor
    placement: Tensor


def explain_images(
    module: nn.Module,
    datamodule: ImageDataModule,
    paths: Sequence[str | Path],
    methods: Sequence[str],
    output: str | Path,
    targets: Sequence[str | int] | None = None,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Classify images and explain the classes; print a table, write overlays, maps and ``predictions.json``.

    Images pass the data module's evaluation transforms. An overlay is drawn on the photo itself, and has no colour
    where the model did not look because a crop has cut it off.

    Args:
        module: a Vision Transformer, or a module that holds one, on the device to compute on. Where its ``hparams``
            have ``multi_label``, probabilities are sigmoids, and every class above one half is predicted. A head of one
            output has the classes 0 and 1 by its sigmoid.
        datamodule: gives the transforms; classes have the names of the module's ``class_names``, and where it has none
            those of the data with as many classes, which is said; otherwise their indices.
        paths: image files, and folders whose image files are taken with those in the folders below.
        methods: explainers, each a name with options if wanted: ``"reciprocam:kernel=dirac"``.
        output: folder of the results; created where it is missing.
        targets: classes to explain in every image, by name or index; None explains the predicted ones.
        batch_size: images per forward; fewer where they would take much memory.

    Returns:
        For each image the ``file``, its ``size`` (width, height), and lists of classes with their index and
        probability: ``predicted``, ``top5`` and ``targets``; under ``["methods"][explainer]`` for each target the names
        of ``overlay`` and ``heatmap``, and whether the map is ``degenerate`` (constant, or with NaN). A heatmap is
        float32 [gh, gw], unscaled. Files that cannot be read are named on stderr and in ``predictions.json``.

    Raises:
        InputError: before any work for a path that does not exist, a folder without images, an unknown method, option
            or class, or an output folder that cannot be written or that somebody else is writing; after it if no image
            can be read.
        UnsupportedModelError: if the module cannot be explained.
    """
    check_at_least("batch_size", batch_size)
    folder = Path(output)
    unreadable: list[dict[str, str]] = []

    def note(path: Path, trouble: str) -> None:
        unreadable.append({"file": storable(path), "trouble": str(bad_file(path, trouble))})

    files = find_images(paths, folder, note)
    run = _Run(module, datamodule, methods, targets, folder)
    console = Console(stderr=True)
    images: list[dict[str, Any]] = []
    description = f"{len(files)} images: {', '.join(run.explainers)}"
    with only_writer(folder):
        try:
            waiting = track(files, description, len(files))
            read = _read(waiting, run.pipeline, datamodule.image_size, unreadable)
            for batch in _in_batches(read, min(batch_size, run.at_once)):
                images += run.explain(batch)
        finally:  # also after Ctrl-C
            unreadable = list({entry["trouble"]: entry for entry in unreadable}.values())  # by two paths, or twice
            results = {"schema_version": SCHEMA_VERSION, "images": images, "unreadable": unreadable}
            _write_predictions(folder, results)
    _report(images, unreadable, folder, console)
    if not images:
        raise InputError(f"None of the {len(unreadable)} files is a readable image.")
    return images


def find_images(
    paths: Sequence[str | Path], leave_out: Path | None = None, note: Note | None = None
) -> list[tuple[Path, str]]:
    """The image files of paths, each once, with what the names of its results begin with.

    Args:
        paths: files, and folders whose files are taken with those of the folders below, see
            :func:`~litcam.data.finding.find_files`.
        leave_out: a folder inside those, whose files are not taken: where an earlier run has left its results.
        note: takes what cannot be read in the folders, and why; by default it is an error.

    Raises:
        InputError: if a path does not exist, a folder has no images, or ``leave_out`` is one of the folders itself.
    """
    if not paths:
        raise InputError("There are no images to explain; name files or folders.")
    missing = [printable(path) for path in paths if not _is_there(Path(path))]
    if missing:
        raise InputError(f"There is no file or folder {' and no '.join(map(repr, missing))}.")
    aside = [] if leave_out is None else [leave_out]
    found: dict[str, tuple[Path, str]] = {}
    names = _UniqueNames()
    for path in map(Path, paths):
        if os.path.realpath(path) in map(os.path.realpath, aside):
            raise InputError(
                f"{printable(path)!r} is both the output and a folder of the images, among which the overlays would be "
                "lost; name another: --output."
            )
        for member in _members(path, aside, note or noting(refuse)):
            name = Path(member.name) if member == path else member.relative_to(path)
            if member != path and len(paths) > 1:
                name = Path(Path(os.path.realpath(path)).name, name)
            key = os.path.abspath(member)  # noqa: PTH100  # a link is an image of its own
            if key not in found:
                found[key] = (member, names.take("/".join(map(_safe, name.with_suffix("").parts))))
    return list(found.values())


def placement(pipeline: Pipeline, image_size: tuple[int, int], model_size: tuple[int, int]) -> Tensor:
    """Where a pipeline takes the places of an image: an affine map [2, 3], both sides in [-1, 1] from edge to edge.

    Found by sending boxes through it, so that any resize, crop, padding, flip or turn is followed.

    Args:
        pipeline: of the evaluation.
        image_size: (height, width) of the image.
        model_size: (height, width) of what comes out.

    Raises:
        InputError: if the pipeline does more than that, or leaves nothing of the image.
    """
    window = np.array([0.0, 0.0, 1.0, 1.0])  # in shares of the sides: what the boxes cover
    for _ in range(2):  # then finer, where a small crop of a large image lies
        ends = np.linspace(window[:2], window[2:], _PROBES + 1)
        lows = np.stack(np.meshgrid(ends[:-1, 0], ends[:-1, 1]), axis=-1).reshape(-1, 2)
        probes = np.concatenate([lows, lows + (window[2:] - window[:2]) / _PROBES], axis=1)  # [n, 4]
        moved, kept = _send(pipeline, probes, image_size, model_size)
        if len(kept):
            sources = probes[kept]
            window = np.concatenate([sources[:, :2].min(0), sources[:, 2:].max(0)])
    whole = ((moved > 0) & (moved < 1)).all(1)  # a box at the border has been cut
    if whole.sum() < 3:
        raise InputError(f"{pipeline.name} leave too little of an image of {image_size[1]} by {image_size[0]} pixels.")
    centres, targets = (boxes[whole].reshape(-1, 2, 2).mean(1) * 2 - 1 for boxes in (sources, moved))
    ones = np.ones((len(centres), 1))
    affine, _, rank, _ = np.linalg.lstsq(np.concatenate([centres, ones], axis=1), targets, rcond=None)
    misses = np.abs(np.concatenate([centres, ones], axis=1) @ affine - targets).max()
    if rank < 3 or misses > 2 * _TOLERANCE:
        raise InputError(f"{pipeline.name} do more than resize, crop, pad and turn: no map can be drawn on the photo.")
    return torch.from_numpy(affine.T).float()


def draw_on_photo(photo: Pixels, heatmap: Tensor, place: Tensor) -> Pixels:
    """A map laid over a photo, where the model saw it.

    Args:
        photo: [h, w, 3].
        heatmap: [H, W] in [0, 1], at the size of the model's image.
        place: see :func:`placement`.
    """
    height, width = photo.shape[:2]
    grid = F.affine_grid(place[None], [1, 1, height, width], align_corners=False)  # [1, h, w, 2]
    inside = (grid[0].abs() <= 1).all(-1).numpy()
    moved = F.grid_sample(heatmap[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
    return np.where(inside[..., None], overlay(photo, moved.numpy()), photo)


class _Run:
    """What is the same for all images."""

    def __init__(
        self,
        module: nn.Module,
        datamodule: ImageDataModule,
        methods: Sequence[str],
        targets: Sequence[str | int] | None,
        folder: Path,
    ) -> None:
        if not methods:
            raise InputError("There is no method to explain with; name one, such as agcam.")
        check_classifies(module, "explain_images")
        self.explainers = create_explainers(methods, module)
        self.vit = find_vit(module)
        self.datamodule = datamodule
        datamodule.use_data_config(getattr(module, "data_config", datamodule.data_config))
        self.device = next(module.parameters()).device
        self.multi_label = bool(getattr(module, "hparams", {}).get("multi_label", False))
        self.pipeline = _eval_pipeline(datamodule)
        blank = torch.zeros(1, 3, *datamodule.image_size, device=self.device)
        with fitting(module, check_images(self.vit, blank)):
            num_classes = class_scores(record(self.vit, blank, {}).logits, False, self.multi_label).shape[1]
        self.at_once = images_at_once(self.vit, blank)
        classes, trouble = _find_classes(module, datamodule, num_classes)
        self.names = classes.names
        self.targets = None if targets is None else _find_targets(targets, classes, trouble)
        if trouble:
            say(f"Classes go by their index: {trouble}")
        self.folder = folder
        self.taken = _UniqueNames()

    def explain(self, batch: Sequence[OwnImage]) -> list[dict[str, Any]]:
        """Classify and explain a batch by one forward, and write its overlays and maps."""
        pixels = torch.stack([image.pixels for image in batch]).to(self.device)
        images = self.datamodule.normalize({"image": pixels})["image"]  # type: ignore[typeddict-item]  # no labels
        trace = record(self.vit, images, {explainer: explainer.read for explainer in self.explainers.values()})
        check_logits(trace.logits, "images", [printable(image.path) for image in batch])
        logits = trace.logits.float()
        shares_of = probabilities(logits, False, self.multi_label).cpu()
        order = class_scores(logits, False).argsort(stable=True, dim=1, descending=True).cpu()
        results: list[dict[str, Any]] = []
        for image, shares, ranks in zip(batch, shares_of, order.tolist(), strict=True):
            predicted = [index for index in ranks if self.multi_label and shares[index] > 0.5] or ranks[:1]
            named = {
                "predicted": predicted,
                "top5": ranks[:5],
                "targets": predicted if self.targets is None else self.targets,
            }
            described = {key: [self._describe(i, shares) for i in indices] for key, indices in named.items()}
            results.append({"file": storable(image.path), "size": list(image.size), **described, "methods": {}})
        for name, explainer in self.explainers.items():
            for result in results:
                result["methods"][name] = []
            for rows in _by_number_of_targets(results):
                self._explain(explainer, name, trace, batch, results, rows)
        return results

    def _explain(
        self,
        explainer: Explainer,
        name: str,
        trace: AttentionTrace,
        batch: Sequence[OwnImage],
        results: list[dict[str, Any]],
        rows: list[int],
    ) -> None:
        """Explain the images ``rows`` by one method; they have the same number of targets."""
        targets = torch.tensor([[target["index"] for target in results[row]["targets"]] for row in rows])
        heatmaps = explainer.explain(trace.select(torch.tensor(rows)), targets).heatmaps.cpu()  # [n, K, gh, gw]
        enlarged = upsample(heatmaps, self.datamodule.image_size)  # [n, K, H, W]
        degenerate = is_degenerate(enlarged.flatten(0, 1)).view(targets.shape)
        for position, row in enumerate(rows):
            image = batch[row]
            for number, target in enumerate(results[row]["targets"]):
                stem = self.taken.take(f"{image.stem}-{_safe(name)}-{_safe(target['class'])}")
                files = {"overlay": f"{stem}.png", "heatmap": f"{stem}.npy"}
                try:
                    drawn = draw_on_photo(image.photo, enlarged[position, number], image.placement)
                    save_png(self.folder / files["overlay"], drawn)
                    write_whole(self.folder / files["heatmap"], _npy(heatmaps[position, number]))
                except OSError as error:
                    raise unwritable(printable(self.folder), error) from error
                entry = {"class": target["class"], "index": target["index"], **files}
                results[row]["methods"][name].append({**entry, "degenerate": bool(degenerate[position, number])})

    def _describe(self, index: int, probabilities: Tensor) -> dict[str, Any]:
        return {"class": self.names[index], "index": index, "probability": float(probabilities[index])}


class _UniqueNames:
    """Gives every name once, also on disks that take upper and lower case or both forms of accents for the same.

    Later ones get a number.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, name: str) -> str:
        unique, number = name, 2
        while composed(unique).casefold() in self._taken:
            unique, number = f"{name}-{number}", number + 1
        self._taken.add(composed(unique).casefold())
        return unique


def _is_there(path: Path) -> bool:
    """Whether there is a file, a folder or a link of a name, as far as the system tells."""
    try:
        path.lstat()
    except PermissionError:
        return True  # what is wrong with it is said when it is read
    except OSError:
        return False
    return True


def _members(path: Path, aside: Sequence[Path], note: Note) -> list[Path]:
    """The image files in a folder; a file is its own."""
    if not is_folder(path):
        return [path]
    noted = []

    def count(file: Path, trouble: str) -> None:
        noted.append(file)
        note(file, trouble)

    members = find_files(path, IMAGE_SUFFIXES, count, aside)
    if not members and not noted:
        raise InputError(f"The folder {printable(path)!r} has no image files ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return members


def _read(
    files: Iterable[tuple[Path, str]], pipeline: Pipeline, model_size: tuple[int, int], unreadable: list[dict[str, str]]
) -> Iterator[OwnImage]:
    """The images one after the other; those that cannot be read are noted."""

    @lru_cache(maxsize=256)
    def place(height: int, width: int) -> Tensor:
        return placement(pipeline, (height, width), model_size)

    for path, stem in files:
        try:
            image = read_image(path)
            height, width = image.shape[:2]
            if max(height, width) > _LONGEST * min(height, width):
                raise bad_file(path, f"the image is {width} by {height} pixels, too long and narrow for the model")
            try:
                pixels = pipeline(image, None, None, (0, 0), model_size)[0]
                where = place(height, width)
            except Exception as error:  # what the transforms of a user's own raise for an image that does not fit
                raise bad_file(path, str(error) or type(error).__name__) from error
        except BadFileError as error:
            unreadable.append({"file": storable(path), "trouble": str(error)})
            continue
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))  # [3, H, W]
        yield OwnImage(path, stem, (width, height), _shrink(image), tensor, where)


def _in_batches(images: Iterable[OwnImage], size: int) -> Iterator[list[OwnImage]]:
    batch: list[OwnImage] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _shrink(image: Pixels) -> Pixels:
    """The image, its long side at most ``LONG_SIDE``."""
    height, width = image.shape[:2]
    factor = LONG_SIDE / max(height, width)
    if factor >= 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _eval_pipeline(datamodule: ImageDataModule) -> Pipeline:
    """The data module's own transforms; where it reads no files, resize and centre crop without a margin."""
    if isinstance(datamodule, ImageFilesDataModule):
        return datamodule.pipeline("val")
    config = {**datamodule.data_config, "crop_pct": 1.0}  # leaves an image of the model's size as it is
    return Pipeline(default_eval_transforms(config, "crop"), "eval_transforms")


def _send(
    pipeline: Pipeline, boxes: NDArray[np.float64], image_size: tuple[int, int], model_size: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Boxes [n, 4] taken through a pipeline: [m, 4], and which of the n those are [m]. In shares of the sides."""
    (height, width), (model_height, model_width) = image_size, model_size
    pixels = (boxes * [width, height, width, height]).astype(np.float32)
    blank = np.zeros((height, width, 3), dtype=np.uint8)
    _, moved, kept, _ = pipeline(blank, pixels, None, (0, 0), model_size)
    return moved / np.array([model_width, model_height, model_width, model_height], dtype=np.float64), kept


def _find_classes(module: nn.Module, datamodule: ImageDataModule, num_classes: int) -> tuple[Classes, str | None]:
    """The model's classes; where it keeps no names, those of the data by place; or their indices, and why."""
    classes = Classes.of(module)
    if classes is not None and len(classes.names) == num_classes:
        return classes, None
    try:
        names = datamodule.class_names
        if len(names) == num_classes:
            say(by_place_sentence(names))
            return Classes.named(names, datamodule.class_ids), None
        trouble = f"the data have {len(names)} classes, but the model has {num_classes}"
    except (LitcamError, OSError) as error:
        trouble = f"the data that name them are not here ({error})"
    return Classes.named([str(index) for index in range(num_classes)]), trouble


def _find_targets(targets: Sequence[str | int], classes: Classes, trouble: str | None) -> list[int]:
    """The indices of classes given by name or index, each once; a name that is a number comes before an index."""
    if not targets:
        raise InputError("targets is empty; name classes, or leave it out to explain the predicted ones.")
    names, num_classes = classes.names, len(classes.names)
    found = []
    for given in targets:
        target = composed(given) if isinstance(given, str) else given
        indices = [index for index in range(num_classes) if target in (names[index], classes.ids[index])]
        if len(indices) > 1:
            same = ", ".join(map(str, indices))
            raise InputError(f"Several classes have the name {target!r}: give one of their indices, {same}.")
        if not indices and isinstance(target, str) and not re.fullmatch(r"-?[0-9]+", target):
            if trouble:
                raise InputError(f"The class {target!r} is not known, for {trouble}; give its index.")
            lower = {name.casefold(): name for name in names}
            close = [lower[name] for name in get_close_matches(target.casefold(), lower, n=5)]
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {_some(names)}."
            raise InputError(f"There is no class {target!r}; {hint}")
        index = indices[0] if indices else int(target)
        if not 0 <= index < num_classes:
            raise InputError(f"There is no class {index}: the model has {num_classes} classes, 0 to {num_classes - 1}.")
        found.append(index)
    return list(dict.fromkeys(found))


def _by_number_of_targets(results: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Which images have 1, 2, … targets."""
    groups: dict[int, list[int]] = {}
    for row, result in enumerate(results):
        groups.setdefault(len(result["targets"]), []).append(row)
    return list(groups.values())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _safe(name: str) -> str:
    """A name as part of a file's: letters, digits and ``. _ + -`` stay, at most 70 bytes."""
    kept = re.sub(r"[^\w.+-]+", "_", printable(name)).strip("._")
    return kept.encode()[:70].decode(errors="ignore") or "_"


def _write_predictions(folder: Path, results: Mapping[str, Any]) -> None:
    try:
        write_whole(folder / "predictions.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise unwritable(printable(folder), error) from error


def _npy(heatmap: Tensor) -> bytes:
    """A map as a file of numpy has it."""
    file = io.BytesIO()
    np.save(file, heatmap.numpy())
    return file.getvalue()


def _report(
    images: Sequence[Mapping[str, Any]], unreadable: Sequence[Mapping[str, str]], folder: Path, errors: Console
) -> None:
    """Say what could not be read, what was predicted, and where it lies."""
    for trouble in unreadable[:_SHOWN]:
        print_line(errors, trouble["trouble"], style="red")
    if len(unreadable) > _SHOWN:
        print_line(errors, f"and {len(unreadable) - _SHOWN} more; predictions.json lists all", style="red")
    console = Console()
    if 0 < len(images) <= _SHOWN:
        console.print(_table(images))
    left_out = f", {len(unreadable)} could not be read" if unreadable else ""
    print_line(console, f"{len(images)} images explained{left_out}.")
    print_line(console, f"Written: {printable(folder / 'predictions.json')}, overlays and maps")


def _table(images: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("file", "predicted")
    table.add_column("probability", justify="right")
    for image in images:
        classes = [entry["class"] for entry in image["predicted"]]
        shares = [entry["probability"] for entry in image["predicted"]]
        shown = "\n".join(f"{share:.1%}" for share in shares)
        table.add_row(Text(printable(image["file"]), overflow="fold"), Text("\n".join(classes)), shown)
    return table
