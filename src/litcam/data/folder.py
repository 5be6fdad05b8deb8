"""A user's own images in folders, with boxes and masks where there are any."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from litcam.data.annotations import Annotation, is_yolo, read_coco, read_csv, read_voc, read_yolo
from litcam.data.boxes import BadBoxError, bad_box, with_boxes
from litcam.data.class_folders import (
    SPLITS,
    Labelled,
    check_splits,
    compare_classes,
    labelled_images,
    of_one_class,
    shared_out,
)
from litcam.data.finding import Note, composed, find_files
from litcam.data.image_files import ImageFilesDataModule, OnError
from litcam.data.module import Split
from litcam.data.pairing import Source, pair, parts_of
from litcam.data.parsing import read_lines
from litcam.data.reading import BadFileError, LeaveOut, bad_file, image_size, noting, printable
from litcam.data.records import Box, MaskValues, Record
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
            with ``classes.txt``, or ``"csv"`` with the columns path, x0, y0, x1, y1 (exclusive) and label. Every image
            has to have an annotation; only of ``"yolo"`` one without has no object.
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
            except BadFileError as error:
                self.note(error)
                continue
            record = self._record(path, indices[name], objects, mask)
            kept = record if objects is None else with_boxes(record, *_of_classes(path, objects, indices), self.note)
            if kept is not None:
                records.append(kept)
        return records

    def _record(self, path: Path, label: int, objects: Annotation | None, mask: Path | None) -> Record:
        return Record(
            path=path,
            labels=(label,),
            id=composed(path.relative_to(self.root).as_posix()),
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
            boxes = None if self.boxes is None else _box_sources(self.boxes, self.boxes_path, self.note)
            masks = None if self.masks is None else _mask_sources(self.masks, self.leave_out)
            matched = None if boxes is None else self._match(images, boxes, "annotation")
            if self.boxes == "yolo" and boxes is not None and matched is not None:
                matched = self._with_background(images, boxes, matched)
            self._sources = matched, None if masks is None else self._match(images, masks, "mask")
        return self._sources

    def _match(self, images: list[Path], sources: "list[_Source]", kind: str) -> "dict[Path, _Source]":
        parts = [parts_of(path.relative_to(self.root)) for path in images]
        pairs, troubles = pair(parts, [source.image for source in sources], kind)
        for index, trouble in troubles.items():
            if sources[index].is_one():
                self.leave_out(sources[index].path, trouble)
        return {images[image]: sources[source] for image, source in pairs.items()}

    def _with_background(
        self, images: list[Path], sources: "list[_Source]", matched: "dict[Path, _Source]"
    ) -> "dict[Path, _Source]":
        """YOLO's convention: an image without a text file has no object, unless a file of its name went to no image."""
        if not matched:
            place = printable(self.boxes_path)
            raise InputError(f"No image has a text file of its name in {place}; boxes_path is where YOLO's boxes are.")
        used = {source.path for source in matched.values()}
        doubtful = {source.image.parts[-1] for source in sources if source.path not in used}
        plain = [path for path in images if path not in matched]
        sure = [path for path in plain if doubtful.isdisjoint({composed(path.name), composed(path.stem)})]
        return {**matched, **{path: _Source(path, Source(())) for path in sure}}


@dataclass(frozen=True)
class _Source:
    """An annotation or a mask of one image.

    Attributes:
        path: of the file.
        image: that it names.
        read: the annotation, given the image's path.
        is_one: whether the file is an annotation at all; asked where no image belongs to it.
    """

    path: Path
    image: Source
    read: Callable[[Path], Annotation] = lambda path: Annotation()
    is_one: Callable[[], bool] = lambda: True


def _of(sources: Mapping[Path, _Source], path: Path, kind: str) -> _Source:
    if path not in sources:
        raise bad_file(path, f"the image has no {kind}")
    return sources[path]


def _of_classes(
    path: Path, objects: Annotation, indices: Mapping[str, int]
) -> tuple[list[Box | BadBoxError], list[int]]:
    """The boxes of an image and the class index of each; one of a class that train has not is not usable."""
    boxes, names = list(objects.boxes), list(map(composed, objects.names))
    for number, (box, name) in enumerate(zip(boxes, names, strict=True)):
        if name not in indices and not isinstance(box, BadBoxError):
            trouble = f"its annotation has the class {name}, of which train has no image"
            boxes[number] = bad_box(path, f"box {number + 1}", trouble)
    return boxes, [indices.get(name, -1) for name in names]


def _box_sources(kind: Boxes, place: Path, leave_out: LeaveOut) -> list[_Source]:
    """Where the boxes of each image are to be read."""
    if kind in ("coco", "csv"):
        return _shared_sources(kind, place, leave_out)
    if not place.is_dir():
        raise InputError(f"boxes_path is {printable(place)!r}, which is no folder of {kind} files.")
    if kind == "voc":
        files = find_files(place, {".xml"}, noting(leave_out))
        return [_Source(file, _named_by(file, place), partial(_read_voc, file)) for file in files]
    names = _yolo_names(place / _YOLO_NAMES)
    files = [file for file in find_files(place, {".txt"}, noting(leave_out)) if file.name != _YOLO_NAMES]
    return [
        _Source(file, _named_by(file, place), partial(_read_yolo, file, names), partial(is_yolo, file))
        for file in files
    ]


def _shared_sources(kind: Boxes, place: Path, leave_out: LeaveOut) -> list[_Source]:
    """The images of files that each say the boxes of many."""
    suffix, read_all = (".json", read_coco) if kind == "coco" else (".csv", read_csv)
    files = [place] if not place.is_dir() else find_files(place, {suffix}, noting(leave_out))
    sources: list[_Source] = []
    for file in files:
        try:
            found = read_all(file, leave_out)
        except BadFileError as error:
            if len(files) == 1:  # no image has an annotation then
                raise
            leave_out(error)
            continue
        sources += [_Source(file, Source(parts_of(name)), partial(_given, objects)) for name, objects in found.items()]
    return sources


def _mask_sources(place: Path, note: Note) -> list[_Source]:
    if not place.is_dir():
        raise InputError(f"masks is {printable(place)!r}, which is no folder.")
    return [_Source(file, _named_by(file, place)) for file in find_files(place, {".png"}, note)]


def _named_by(file: Path, place: Path) -> Source:
    """The image that a file is named after."""
    return Source(parts_of(file.relative_to(place).with_suffix("")), file.suffix)


def _given(objects: Annotation | BadFileError, image: Path) -> Annotation:
    if isinstance(objects, BadFileError):
        raise objects
    return objects


def _read_voc(file: Path, image: Path) -> Annotation:
    return read_voc(file)


def _read_yolo(file: Path, names: list[str], image: Path) -> Annotation:
    return read_yolo(file, image_size(image, decode=False), names)


def _yolo_names(path: Path) -> list[str]:
    """The names of YOLO's class numbers; blank lines have none."""
    try:
        return [name for _, name in read_lines(path)]
    except BadFileError as error:
        raise BadFileError(f"{error}; it has to name YOLO's classes, one per line") from None


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
