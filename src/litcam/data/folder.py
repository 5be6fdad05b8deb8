"""A user's own images in folders, with boxes and masks where there are any."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from litcam.data.annotations import Annotation, read_coco, read_csv, read_voc, read_yolo
from litcam.data.class_folders import (
    SPLITS,
    Labelled,
    check_splits,
    compare_classes,
    labelled_images,
    of_one_class,
    shared_out,
)
from litcam.data.finding import Note, composed, find_files, regular
from litcam.data.image_files import ImageFilesDataModule, OnError
from litcam.data.module import Split
from litcam.data.pairing import Source, pair, parts_of
from litcam.data.reading import BadFileError, bad_file, image_size, printable
from litcam.data.records import MaskValues, Record
from litcam.data.transforms import TransformSpec
from litcam.errors import InputError, check_choice

Boxes = Literal["voc", "coco", "yolo", "csv"]

_YOLO_NAMES = "classes.txt"  # names of YOLO's class numbers, one per line


class FolderDataModule(ImageFilesDataModule):
    """Images of one class each: ``train/<class>/…``, ``val/<class>/…`` and, if wanted, ``test/<class>/…``.

    Without a ``train`` folder, the folders in ``root`` are the classes and every class is split by seeded shares. The
    classes are those of the training images, in the order of their names. Links are followed; hidden and system files
    and folders (``.ipynb_checkpoints``, ``__MACOSX``, ``@eaDir``, …) are no data. A class has at least one image in
    each of train and val; names of one file by links go to the same split.

    Boxes and masks are found by the image's path, with its ending or without: as much of the path as there is in the
    annotation has to agree, and at least the name. Boxes of other classes than the image's are left aside.

    Args:
        root: folder of the images.
        class_pattern: regular expression whose first group, searched in the file name, is the class; the folders then
            say nothing: ``"(.+)_[0-9]+"``.
        val_share: of each class's images without split folders.
        test_share: the same, for test.
        boxes: format of the boxes: ``"voc"`` XML files (1-based, inclusive), ``"coco"`` JSON, ``"yolo"`` text files
            with ``classes.txt``, or ``"csv"`` with the columns path, x0, y0, x1, y1 (exclusive) and label; every image
            has to have an annotation.
        boxes_path: file (coco, csv) or folder of the boxes, seen from ``root``; by default ``root`` itself.
        masks: folder of the masks, PNG, seen from ``root``.
        mask_values: ``"object"``: above half of the largest value is the object; ``"classes"``: k is the class of index
            k − 1; ``"instances"``: k is the k-th box of the annotation; 0 is background, 255 void in the latter two.
        train_transforms: see :class:`~litcam.data.ImageFilesDataModule`, as for all that follow.
        eval_transforms: for validation and test.
        eval_resize: ``"crop"`` or ``"squash"``.
        on_error: ``"raise"`` or ``"skip"``.
        seed: of the split, of augmentations and order.
        batch_size: images per batch and process.
        num_workers: loading processes.

    Raises:
        InputError: for an unknown option, and, once images are asked for, if there are none.
    """

    def __init__(
        self,
        root: str,
        class_pattern: str | None = None,
        val_share: float = 0.2,
        test_share: float = 0.0,
        boxes: Boxes | None = None,
        boxes_path: str | None = None,
        masks: str | None = None,
        mask_values: MaskValues = "object",
        train_transforms: list[TransformSpec] | None = None,
        eval_transforms: list[TransformSpec] | None = None,
        eval_resize: Literal["crop", "squash"] = "crop",
        on_error: OnError = "raise",
        seed: int = 0,
        batch_size: int = 64,
        num_workers: int = 4,
    ) -> None:
        super().__init__(root, train_transforms, eval_transforms, eval_resize, on_error, seed, batch_size, num_workers)
        self.save_hyperparameters()
        check_choice("boxes", boxes, (None, "voc", "coco", "yolo", "csv"))
        check_choice("mask_values", mask_values, ("object", "classes", "instances"))
        self.class_pattern = _compile(class_pattern)
        if not (val_share > 0 and test_share >= 0 and val_share + test_share < 1):
            raise InputError(f"val_share {val_share} and test_share {test_share} have to leave something to train on.")
        self.shares = (val_share, test_share)
        self.boxes = boxes
        self.boxes_path = self.root / (boxes_path or "")
        self.masks = None if masks is None else self.root / masks
        self.mask_values: MaskValues = mask_values
        self._found: dict[Split, Labelled] | None = None
        self._sources: tuple[dict[Path, _Source] | None, dict[Path, _Source] | None] | None = None

    @property
    def class_names(self) -> list[str]:
        return sorted({name for _, name in self._images()["train"]})

    def records(self, split: Split) -> list[Record]:
        images = self._images()
        annotations, masks = self._matched()
        indices = {name: index for index, name in enumerate(self.class_names)}
        records = []
        for path, name in images[split]:
            if name not in indices:  # noted when the classes were compared
                continue
            try:
                objects = None if annotations is None else _of(annotations, path, "annotation").read(path)
                mask = None if masks is None else _of(masks, path, "mask").path
                records.append(self._record(path, name, indices, objects, mask))
            except BadFileError as error:
                self.note(error)
        return records

    def _record(
        self, path: Path, name: str, indices: Mapping[str, int], objects: Annotation | None, mask: Path | None
    ) -> Record:
        names = [composed(label) for label in objects.names] if objects else []
        unknown = sorted(set(names) - indices.keys())
        if unknown:
            raise bad_file(path, f"its annotation has the class {', '.join(unknown)}, of which train has no image")
        return Record(
            path=path,
            labels=(indices[name],),
            id=composed(path.relative_to(self.root).as_posix()),
            boxes=objects.boxes if objects else None,
            box_labels=tuple(indices[label] for label in names),
            mask=mask,
            mask_values=self.mask_values,
            size=objects.size if objects else None,
        )

    def _images(self) -> dict[Split, Labelled]:
        """The images of each split with the name of their class, found once."""
        if self._found is None:
            if not self.root.is_dir():
                raise InputError(f"root is {printable(self.root)!r}, which is no folder.")
            if self.class_pattern is None:
                check_splits(self.root, self.leave_out)
            if (self.root / "train").is_dir():
                found = of_one_class({split: self._labelled(self.root / split) for split in SPLITS}, self.leave_out)
            else:
                labelled = of_one_class({"train": self._labelled(self.root)}, self.leave_out)["train"]
                found = shared_out(labelled, self.shares, self.seed, self.leave_out)
            if not found["train"]:
                raise InputError(
                    f"There is no image to train on in {printable(self.root)}; expected are train/<class>/*.jpg and "
                    "val/<class>/*.jpg, or <class>/*.jpg, or class_pattern."
                )
            compare_classes(found, self.leave_out)
            self._found = found
        return self._found

    def _labelled(self, folder: Path) -> Labelled:
        aside = {path for path in (self.masks, self.boxes_path) if path is not None and path != self.root}
        return labelled_images(folder, self.class_pattern, aside, self.leave_out)

    def _matched(self) -> tuple["dict[Path, _Source] | None", "dict[Path, _Source] | None"]:
        """The annotation and the mask of each image, found once; None where none are asked for."""
        if self._sources is None:
            images = [path for found in self._images().values() for path, _ in found]
            boxes = None if self.boxes is None else _box_sources(self.boxes, self.boxes_path, self.leave_out)
            masks = None if self.masks is None else _mask_sources(self.masks, self.leave_out)
            self._sources = (
                None if boxes is None else self._match(images, boxes, "annotation"),
                None if masks is None else self._match(images, masks, "mask"),
            )
        return self._sources

    def _match(self, images: list[Path], sources: "list[_Source]", kind: str) -> "dict[Path, _Source]":
        parts = [parts_of(path.relative_to(self.root)) for path in images]
        pairs, troubles = pair(parts, [source.image for source in sources], kind)
        for index, trouble in troubles.items():
            self.leave_out(sources[index].path, trouble)
        return {images[image]: sources[source] for image, source in pairs.items()}


@dataclass(frozen=True)
class _Source:
    """An annotation or a mask of one image.

    Attributes:
        path: of the file.
        image: that it names.
        read: the annotation, given the image's path.
    """

    path: Path
    image: Source
    read: Callable[[Path], Annotation] = lambda path: Annotation()


def _of(sources: Mapping[Path, _Source], path: Path, kind: str) -> _Source:
    if path not in sources:
        raise bad_file(path, f"the image has no {kind}")
    return sources[path]


def _box_sources(kind: Boxes, place: Path, note: Note) -> list[_Source]:
    """Where the boxes of each image are to be read."""
    if kind in ("coco", "csv"):
        suffix, read_all = (".json", read_coco) if kind == "coco" else (".csv", read_csv)
        files = [place] if not place.is_dir() else find_files(place, {suffix}, note)
        found = [(file, name, objects) for file in files for name, objects in read_all(file).items()]
        return [_Source(file, Source(parts_of(name)), partial(_given, objects)) for file, name, objects in found]
    if not place.is_dir():
        raise InputError(f"boxes_path is {printable(place)!r}, which is no folder of {kind} files.")
    if kind == "voc":
        return [
            _Source(file, _named_by(file, place), partial(_read_voc, file))
            for file in find_files(place, {".xml"}, note)
        ]
    names = _yolo_names(place)
    files = [file for file in find_files(place, {".txt"}, note) if file.name != _YOLO_NAMES]
    return [_Source(file, _named_by(file, place), partial(_read_yolo, file, names)) for file in files]


def _mask_sources(place: Path, note: Note) -> list[_Source]:
    if not place.is_dir():
        raise InputError(f"masks is {printable(place)!r}, which is no folder.")
    return [_Source(file, _named_by(file, place)) for file in find_files(place, {".png"}, note)]


def _named_by(file: Path, place: Path) -> Source:
    """The image that a file is named after."""
    return Source(parts_of(file.relative_to(place).with_suffix("")), file.suffix)


def _given(objects: Annotation, image: Path) -> Annotation:
    return objects


def _read_voc(file: Path, image: Path) -> Annotation:
    return read_voc(file)


def _read_yolo(file: Path, names: list[str], image: Path) -> Annotation:
    return read_yolo(file, image_size(image, decode=False), names)


def _yolo_names(place: Path) -> list[str]:
    try:
        return regular(place / _YOLO_NAMES).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{place / _YOLO_NAMES} cannot be read ({error}); it has to name YOLO's classes, one per line."
        ) from error


def _compile(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        compiled = re.compile(composed(pattern))
    except re.error as error:
        raise InputError(f"class_pattern {pattern!r} is no regular expression ({error}).") from error
    if compiled.groups < 1:
        raise InputError(f"class_pattern {pattern!r} has no group; put the class in brackets: '(.+)_[0-9]+'.")
    return compiled
