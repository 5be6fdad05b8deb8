"""The images of a folder with the names of their classes, and how they are shared out to splits. Reads no image."""

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from litcam.data.finding import Note, composed, find_files, real_files, subfolders
from litcam.data.module import Split
from litcam.data.reading import IMAGE_SUFFIXES, has_utf8_name, printable
from litcam.errors import InputError

Labelled = list[tuple[Path, str]]  # images, each with the name of its class
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_WORDS = frozenset({*SPLITS, "training", "valid", "validation", "dev", "testing"})  # that people call splits by


def check_splits(root: Path, note: Note) -> None:
    """Refuse folders of splits that would be taken for classes, or not at all.

    Raises:
        InputError: if train or val is missing beside a folder of folders that has the name of a split.
    """
    missing = [split for split in SPLITS[:2] if not (root / split).is_dir()]
    known = () if "train" in missing else SPLITS
    for folder in subfolders(root, note) if missing else ():
        if folder.name.casefold() in _WORDS and folder.name not in known and subfolders(folder, note):
            raise InputError(
                f"{printable(root)!r} has a folder {folder.name!r}, but none {missing[0]!r}: call the folders of the "
                "splits train, val and, if wanted, test."
            )


def labelled_images(folder: Path, pattern: re.Pattern[str] | None, aside: Collection[Path], note: Note) -> Labelled:
    """The images in a folder and below, in the order of their paths, with the name of their class.

    Args:
        folder: to search; one that is not there has none.
        pattern: whose first group, searched in a file's name, is its class; None takes the folders in ``folder``.
        aside: folders that hold no images of a class.
        note: takes what cannot be used, and why.
    """
    if not folder.is_dir():
        return []
    known = {top for path in aside if path.is_relative_to(folder) for top in path.relative_to(folder).parts[:1]}

    def told(path: Path, trouble: str) -> None:
        known.update(path.relative_to(folder).parts[:1])  # enough is said of this folder
        note(path, trouble)

    labelled = []
    for path in _distinct(find_files(folder, IMAGE_SUFFIXES, told, aside), told):
        below = path.relative_to(folder)
        name, trouble = _class_of(below, pattern)
        known.add(below.parts[0])
        if trouble:
            note(path, trouble)
        else:
            labelled.append((path, name))
    for empty in subfolders(folder, note) if pattern is None else ():
        if empty.name not in known:
            note(empty, "the folder of this class has no image")
    return labelled


def of_one_class(found: Mapping[Split, Labelled], note: Note) -> dict[Split, Labelled]:
    """The images without the files that links make images of several classes; warn of those of train and of another."""
    real = real_files(path for images in found.values() for path, _ in images)
    classes: dict[str, set[str]] = {}
    for path, name in (image for images in found.values() for image in images):
        classes.setdefault(real[path], set()).add(name)
    kept: dict[Split, Labelled] = {split: [] for split in found}
    for split, images in found.items():
        for path, name in images:
            if len(classes[real[path]]) == 1:
                kept[split].append((path, name))
            else:
                note(path, f"by links it is an image of several classes, {' and '.join(sorted(classes[real[path]]))}")
    trained = {real[path]: path for path, _ in kept["train"]}
    again = [path for split in kept if split != "train" for path, _ in kept[split] if real[path] in trained]
    if again:
        which = f"such as {printable(again[0])}, which is {printable(trained[real[again[0]]])}"
        warnings.warn(
            f"{len(again)} images of val or test are by links those of train, {which}: what is measured on them says "
            "nothing of other images",
            stacklevel=2,
        )
    return kept


def shared_out(labelled: Labelled, shares: tuple[float, float], seed: int, note: Note) -> dict[Split, Labelled]:
    """Each class's images shared out to train, val and test, at random and in the order of their paths.

    Names of one file stay together. Train and val get one image of each class at least.

    Args:
        labelled: the images.
        shares: of val and test.
        seed: of the choice.
        note: takes the image of a class that has only one.
    """
    real = real_files(path for path, _ in labelled)
    classes: dict[str, dict[str, list[int]]] = {}
    for index, (path, name) in enumerate(labelled):
        classes.setdefault(name, {}).setdefault(real[path], []).append(index)
    rng = np.random.default_rng(seed)
    chosen: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for name in sorted(classes):
        files = list(classes[name].values())
        order = [files[place] for place in rng.permutation(len(files))]
        if len(order) == 1:
            path = labelled[order[0][0]][0]
            trouble = f"it is the only image of the class {name}, but train and val need one each"
            note(path, f"{trouble}; add another, or remove the class with its folder")
            continue
        val = min(max(1, round(shares[0] * len(order))), len(order) - 1)
        test = min(round(shares[1] * len(order)), len(order) - 1 - val)
        for place, indices in enumerate(order):
            chosen["val" if place < val else "test" if place < val + test else "train"] += indices
    return {split: [labelled[index] for index in sorted(indices)] for split, indices in chosen.items()}


def compare_classes(found: Mapping[Split, Labelled], note: Note) -> None:
    """Note each class of another split that is not in train, and each class of train that is not in val."""
    first = {split: {name: path for path, name in reversed(found[split])} for split in SPLITS}
    pairs: list[tuple[Split, Split]] = [("val", "train"), ("test", "train")]
    if found["val"]:
        pairs.append(("train", "val"))
    for split, other in pairs:
        for name in sorted(first[split].keys() - first[other].keys()):
            trouble = f"{split} has the class {name}, but {other} has not; put some of its images there"
            note(first[split][name], trouble)


def _class_of(path: Path, pattern: re.Pattern[str] | None) -> tuple[str, str | None]:
    """The name of an image's class, or why it has none; the path is seen from the folder of the classes."""
    if not has_utf8_name(path):
        return "", "the name is not UTF-8; rename it"
    if pattern is None:
        trouble = "the image lies in no folder of a class; move it, or give class_pattern"
        return composed(path.parts[0]), trouble if len(path.parts) < 2 else None
    match = pattern.search(composed(path.name))
    if match is None or not match[1]:
        return "", f"class_pattern {pattern.pattern!r} finds no class in the name"
    return match[1], None


def _distinct(paths: list[Path], note: Note) -> list[Path]:
    """The files whose names differ by more than the form in which their accents are written."""
    same: dict[str, list[Path]] = {}
    for path in paths:
        same.setdefault(composed(str(path)), []).append(path)
    for twins in same.values():
        for place, path in enumerate(twins if len(twins) > 1 else ()):
            other = f"{str(twins[place - 1])!a}"
            note(path, f"its name differs from {other} only in how accents are written (NFC, NFD); rename one")
    return [twins[0] for twins in same.values() if len(twins) == 1]
