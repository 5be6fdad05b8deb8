"""ImageNet ILSVRC 2012: train and val folders by synset, or Kaggle's archive as it unpacks; boxes of the val images."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from timm.data import ImageNetInfo, infer_imagenet_subset

from litcam.data.annotations import Annotation, read_voc
from litcam.data.boxes import BoxFormat, with_boxes
from litcam.data.finding import composed, find_files, subfolders
from litcam.data.image_files import ImageFiles, ImageFilesDataModule, OnError
from litcam.data.module import Split
from litcam.data.parsing import read_lines, read_rows
from litcam.data.reading import IMAGE_SUFFIXES, BadFileError, LeaveOut, bad_file, noting, refuse
from litcam.data.records import Record, Records
from litcam.data.transforms import TransformSpec
from litcam.errors import InputError, check_choice

Annotations = Mapping[str, Annotation | None]  # by the image's name without suffix; None for one that is not usable

MAPPING, SOLUTION = "LOC_synset_mapping.txt", "LOC_val_solution.csv"
EXPECTED = (
    "expected is either train/<synset>/*.JPEG and val/<synset>/*.JPEG, or what Kaggle's archive unpacks to: "
    "ILSVRC/Data/CLS-LOC/train/<synset>/*.JPEG and val/*.JPEG, with LOC_val_solution.csv or "
    "ILSVRC/Annotations/CLS-LOC/val/*.xml. "
    "Get the files from image-net.org or Kaggle; their licence allows litcam no download."
)


@dataclass(frozen=True)
class _Tree:
    """Where the parts of the dataset lie."""

    images: Path  # holds train and val
    annotations: Path  # holds val/*.xml, if there are any
    lists: tuple[Path, ...]  # folders in which Kaggle's lists may lie
    kaggle: bool

    def folder(self, split: Split) -> Path:
        check_choice("split", split, ("train", "val"))
        return self.images / split

    def find(self, name: str) -> Path | None:
        return next((folder / name for folder in self.lists if (folder / name).is_file()), None)


def imagenet_records(root: str | Path, split: Split, leave_out: LeaveOut = refuse) -> Records:
    """The images of a split of ImageNet by class and name, or in the order of Kaggle's list.

    Validation images have boxes where Kaggle's list or XML files are there too; pixels are counted from 0 and ends are
    inclusive in both, so they become exclusive by adding 1. Only objects of the image's class count. Images that are
    not annotated have no boxes, nor have training images.

    Args:
        root: the folder that holds ``train`` and ``val``, or Kaggle's ``ILSVRC``, or ``ILSVRC`` itself.
        split: ``"train"`` or ``"val"``; the images of the test set have no public labels.
        leave_out: takes the error of each image that is annotated but missing or has no label, of each annotation and
            each box that is not usable, and of each folder that is empty or of no class; by default it raises them.

    Raises:
        InputError: if the split or its labels are missing, or a list cannot be read.
    """
    tree = _find_tree(Path(root))
    folder = _split_folder(tree, split)
    classes = {synset: index for index, synset in enumerate(_descriptions(tree))}
    annotations: Annotations = {} if split == "train" else _val_annotations(tree, leave_out)
    if folders := subfolders(folder, noting(leave_out)):
        labelled = _images_by_folder(folders, classes, leave_out)
    else:
        labelled = _images_by_annotation(folder, classes, annotations, leave_out)
    records = (
        _record(path, synset, classes[synset], annotations.get(composed(path.stem)), leave_out)
        for path, synset in labelled
        if annotations.get(composed(path.stem), _NONE) is not None
    )
    return Records(record for record in records if record is not None)


def imagenet_class_names(root: str | Path) -> list[str]:
    """The classes by index, in words: the first of a synset's, with the synset itself where classes share the word.

    Indices follow the sorted synsets, as in torchvision and timm: those of ``LOC_synset_mapping.txt`` where there is
    one; else all 1,000 in Kaggle's layout, and the folders of ``train`` (or, without it, ``val``) in the other.

    Raises:
        InputError: if neither layout is there, or the mapping cannot be read.
    """
    return _in_words(_descriptions(_find_tree(Path(root))))


def imagenet_synsets(root: str | Path) -> list[str]:
    """The synsets of the classes, by index; see :func:`imagenet_class_names`."""
    return list(_descriptions(_find_tree(Path(root))))


def timm_classes(size: int) -> tuple[list[str], list[str]]:
    """Names and synsets of the classes of timm's ImageNet models with so many; none where it knows no such set."""
    subset = infer_imagenet_subset({"num_classes": size})
    if subset is None:
        return [], []
    info = ImageNetInfo(subset)
    words = {synset: info.label_name_to_description(synset) for synset in info.label_names()}
    return _in_words(words), list(words)


def _in_words(descriptions: Mapping[str, str]) -> list[str]:
    """The first word of each class, with its synset where classes share it."""
    words = {synset: text.split(",")[0] for synset, text in descriptions.items()}
    shared = Counter(words.values())
    return [word if shared[word] == 1 else f"{word} ({synset})" for synset, word in words.items()]


def _find_tree(root: Path) -> _Tree:
    for base in (root / "ILSVRC", root):
        images = base / "Data" / "CLS-LOC"
        if images.is_dir():
            return _Tree(images, base / "Annotations" / "CLS-LOC", (base, base.absolute().parent), kaggle=True)
    if (root / "train").is_dir() or (root / "val").is_dir():
        return _Tree(root, root / "Annotations" / "CLS-LOC", (root,), kaggle=False)
    raise InputError(f"There is no ImageNet in {root}: {EXPECTED}")


def _split_folder(tree: _Tree, split: Split) -> Path:
    folder = tree.folder(split)
    if not folder.is_dir():
        raise InputError(f"{folder} is missing, the images for {split}: {EXPECTED}")
    return folder


def _descriptions(tree: _Tree) -> dict[str, str]:
    """What each class is called, by synset, sorted: the order of the class indices."""
    mapping = tree.find(MAPPING)
    if mapping is not None:
        return dict(sorted(_read_mapping(mapping).items()))
    info = ImageNetInfo()
    known = {synset: info.label_name_to_description(synset) for synset in info.label_names()}
    if tree.kaggle:
        return dict(sorted(known.items()))
    folders = next(folder for folder in (tree.folder("train"), tree.folder("val")) if folder.is_dir())
    names = [composed(folder.name) for folder in subfolders(folders, noting(refuse))]
    return {name: known.get(name, name) for name in names}


def _read_mapping(path: Path) -> dict[str, str]:
    descriptions: dict[str, str] = {}
    for number, line in read_lines(path):
        synset, _, description = line.partition(" ")
        if not synset or not description.strip() or synset in descriptions:
            raise bad_file(path, f"line {number}: {line!r} has to be a synset, new in the file, and its names")
        descriptions[synset] = description.strip()
    return descriptions


def _val_annotations(tree: _Tree, leave_out: LeaveOut) -> Annotations:
    """The objects of the validation images; empty where nothing is annotated."""
    solution = tree.find(SOLUTION)
    if solution is not None:
        return _read_solution(solution, leave_out)
    annotations: dict[str, Annotation | None] = {}
    folder = tree.annotations / "val"
    for path in find_files(folder, {".xml"}, noting(leave_out)) if folder.is_dir() else ():
        try:
            annotations[composed(path.stem)] = read_voc(path, first_pixel=0)
        except BadFileError as error:
            leave_out(error)
            annotations[composed(path.stem)] = None
    return annotations


def _read_solution(path: Path, leave_out: LeaveOut) -> Annotations:
    """The objects of Kaggle's list: a line for each image, in it synset, x0, y0, x1 and y1 of each object."""
    annotations: dict[str, Annotation | None] = {}
    for line, (image, prediction), whole in read_rows(path, ("ImageId", "PredictionString")):
        image, words, trouble = composed(image), prediction.split(), None
        if not image or not whole or not words or len(words) % 5:
            trouble = f"{prediction!r} has to be 'synset x0 y0 x1 y1' for each object"
        elif image in annotations:
            trouble = f"{image} stands there for the second time"
        if trouble is not None:
            leave_out(bad_file(path, f"line {line}, of {image}: {trouble}"))
            annotations[image] = None
            continue
        objects = [words[start : start + 5] for start in range(0, len(words), 5)]
        boxes = tuple(
            _BOX.read(path, f"line {line}, object {number} of {image}", corners)
            for number, (_, *corners) in enumerate(objects, start=1)
        )
        annotations[image] = Annotation(boxes, tuple(synset for synset, *_ in objects))
    return annotations


_BOX = BoxFormat(end=1)


def _images_by_folder(
    folders: Sequence[Path], classes: Mapping[str, int], leave_out: LeaveOut
) -> Iterator[tuple[Path, str]]:
    """Each image with its class, the name of the folder that it lies in."""
    for subfolder in folders:
        images, synset = find_files(subfolder, IMAGE_SUFFIXES, noting(leave_out)), composed(subfolder.name)
        if synset not in classes:
            leave_out(bad_file(subfolder, f"the folder is none of the {len(classes)} classes; {_WHICH}"))
        elif not images:
            leave_out(bad_file(subfolder, "the folder holds no image"))
        else:
            yield from ((image, synset) for image in images)


def _images_by_annotation(
    folder: Path, classes: Mapping[str, int], annotations: Annotations, leave_out: LeaveOut
) -> Iterator[tuple[Path, str]]:
    """Each image with the class of its first object."""
    if not annotations:
        raise InputError(f"The images in {folder} have no labels: {EXPECTED}")
    images = {composed(image.stem): image for image in find_files(folder, IMAGE_SUFFIXES, noting(leave_out))}
    for name, annotation in annotations.items():
        image = images.pop(composed(name), None)
        if image is None:
            leave_out(bad_file(folder / f"{name}.JPEG", "the image is annotated, but is not there"))
        elif annotation is not None and (not annotation.names or annotation.names[0] not in classes):
            leave_out(bad_file(image, f"its annotation names none of the {len(classes)} classes; {_WHICH}"))
        elif annotation is not None:
            yield image, annotation.names[0]
    for image in images.values():
        leave_out(bad_file(image, "the image has no annotation, and so no label"))


_WHICH = f"they are the synsets of {MAPPING}, or without it the folders of train"
_NONE = Annotation()


def _record(path: Path, synset: str, label: int, annotation: Annotation | None, leave_out: LeaveOut) -> Record | None:
    if annotation is None:
        return Record(path, (label,), path.stem)
    record = Record(path, (label,), path.stem, size=annotation.size)
    objects = zip(annotation.boxes, annotation.names, strict=True)
    boxes = [box for box, name in objects if name in (synset, "")]
    return with_boxes(record, boxes, (label,) * len(boxes), leave_out)


class ImageNetDataModule(ImageFilesDataModule):
    """ImageNet ILSVRC 2012 in either standard layout; train and val, for the test images have no public labels.

    Boxes are those of the validation images; see :func:`imagenet_records`. Training needs ``train``, evaluation does
    not.

    Args:
        root: the folder that holds ``train`` and ``val``, or Kaggle's ``ILSVRC``, or ``ILSVRC`` itself.
        train_transforms: see :class:`~litcam.data.ImageFilesDataModule`, as for all that follow.
        eval_transforms: for validation.
        eval_resize: ``"crop"`` or ``"squash"``.
        on_error: ``"raise"`` or ``"skip"``.
        seed: of augmentations and order.
        batch_size: images per batch and process.
        num_workers: loading processes.

    Raises:
        InputError: for an unknown option, and, once images are asked for, if the dataset is not there.
    """

    splits = ("train", "val")

    def __init__(
        self,
        root: str = "data",
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

    @property
    def class_names(self) -> list[str]:
        return imagenet_class_names(self.root)

    @property
    def class_ids(self) -> list[str]:
        """The synsets: words are shared, and differ with the classes at hand."""
        return imagenet_synsets(self.root)

    def records(self, split: Split) -> Sequence[Record]:
        tree = _find_tree(self.root)
        if not tree.folder(split).is_dir():
            return []
        return imagenet_records(self.root, split, self.note)

    def build_dataset(self, split: Split) -> ImageFiles:
        if split in self.splits:
            _split_folder(_find_tree(self.root), split)
        return super().build_dataset(split)
