"""DigitScenes: real handwritten digits in cluttered colour scenes, with the box and the pixel mask of every instance.

The data that is always there: the 1,797 digits ship with scikit-learn, the scenes are drawn on demand. Knows no model.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset

from litcam.data.batch import Sample
from litcam.data.cues import Cue, CuedSample, CueKind
from litcam.data.module import ImageDataModule, Split, StreamSampler, rank_and_world
from litcam.errors import InputError, check_at_least, check_choice

Image = NDArray[np.float32]

_CELL = 32  # the 8 × 8 digits are enlarged to this side once, smoothly, before scenes scale them
_SHEETS = 16  # of clutter: with windows and symmetries some four million backgrounds
_CLUTTER_COLOURS = 12  # in a scene

CLASS_NAMES = [str(digit) for digit in range(10)]
_SPLIT_SHARES: dict[Split, tuple[float, float]] = {"train": (0.0, 0.7), "val": (0.7, 0.85), "test": (0.85, 1.0)}


@dataclass(frozen=True)
class SceneStyle:
    """How hard a scene is: everything here is drawn anew for every scene within these bounds.

    Attributes:
        classes: different digit classes in a scene, 1 or 2.
        max_instances: at most this many instances of the class, at least one; of two classes each has at least one and
            at most one less than this (one, where this is 1).
        digit_size: smallest and largest side of a digit's cell, as shares of the image side.
        clutter: at most about this many fragments of digits (of any class) on the background; plain ones occur.
        contrast: by how much digits and fragments are lighter than the ground (luminance, 0 to 255).
        texture: amplitude of the background's texture (0 to 255).
        fog: how much of every pixel is white, 0 to 1: at 0.8 a fifth of all contrast is left.

    Raises:
        InputError: for other numbers of classes, less than one instance, and a fog that leaves nothing to see.
    """

    classes: int = 1
    max_instances: int = 3
    digit_size: tuple[float, float] = (0.28, 0.47)  # 18 to 30 of 64 pixels
    clutter: int = 10
    contrast: float = 50.0
    texture: float = 22.0
    fog: float = 0.0

    def __post_init__(self) -> None:
        check_choice("classes", self.classes, (1, 2))
        check_at_least("max_instances", self.max_instances)
        if not 0 <= self.fog < 1:
            raise InputError(f"fog is {self.fog}; it has to be 0 or more and less than 1, which is white alone.")

    @property
    def max_per_class(self) -> int:
        """At most this many instances of each class."""
        return self.max_instances if self.classes == 1 else max(1, self.max_instances - 1)


@cache
def _source_digits(split: Split) -> tuple[Image, list[int]]:
    """The split's own digits as opacity [n, 32, 32], sorted by class, and where each class starts (11 numbers).

    The splits share no digit, and each holds every class.
    """
    digits = load_digits()
    first, last = _SPLIT_SHARES[split]
    order = np.random.default_rng(1797).permutation(len(digits.target))  # one fixed partition, whatever the seed
    chosen: list[NDArray[np.int64]] = []
    for label in range(10):
        members = order[digits.target[order] == label]
        chosen.append(members[round(first * len(members)) : round(last * len(members))])
    starts = [0, *np.cumsum([len(members) for members in chosen]).tolist()]
    smooth = [cv2.resize(digit / 16, (_CELL, _CELL), interpolation=cv2.INTER_CUBIC) for digit in digits.images]
    return np.clip(1.3 * np.stack(smooth), 0, 1)[np.concatenate(chosen)].astype(np.float32), starts


class DigitScenes(Dataset[Sample]):
    """Scenes of one to three instances of one digit class at random places and sizes, among fragments of other digits.

    With two classes (see :class:`SceneStyle`) the label is multi-hot, bool [10], and each class has its instances.

    Scene ``i`` depends on ``seed``, ``split`` and ``i`` alone, bit for bit, in whatever process it is drawn. Indices
    beyond ``num_scenes`` give further scenes of the same stream, so that every epoch can have fresh ones.

    Scenes can carry a cue that gives the class away, so that a model can cheat: see :class:`litcam.data.cues.Cue`. The
    sample says its class in ``cue`` (−1 without one) and its place in ``cue_box``.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; they share no source digit.
        num_scenes: the length of the dataset.
        image_size: side of the square scene in pixels.
        seed: of the stream of scenes.
        style: how hard the scenes are.
        cue: ``"none"``, or the kind of cue that is planted in them: ``"patch"``, ``"stamp"``, ``"frame"``,
            ``"background"``, ``"tint"`` or ``"inside"``.
        cue_strength: chance that the cue's class is the label, from 0.1 to 1.
        cue_seed: of the cues; scenes without them are the same.
        redraw_cue: draw the class of each cue uniformly, whatever the label; all else stays as it is, bit for bit.

    Raises:
        InputError: for an unknown split, a length below 1, a side below 32 pixels, digits of which two have no room, an
            option of the cue out of its range, or a cue in scenes of two classes.
    """

    def __init__(
        self,
        split: Split = "train",
        num_scenes: int = 10_000,
        image_size: int = 64,
        seed: int = 0,
        style: SceneStyle | None = None,
        cue: CueKind = "none",
        cue_strength: float = 1.0,
        cue_seed: int = 0,
        redraw_cue: bool = False,
    ) -> None:
        check_choice("split", split, _SPLIT_SHARES)
        check_at_least("num_scenes", num_scenes)
        if image_size < 32:
            raise InputError(f"image_size is {image_size}; digits need scenes of at least 32 pixels.")
        self.split = split
        self.num_scenes = num_scenes
        self.image_size = image_size
        self.seed = seed
        self.style = style or SceneStyle()
        self.cue = _checked_cue(Cue(cue, cue_strength, cue_seed, redraw_cue), self.style)
        smallest = _cell_side(0, image_size, self.style.digit_size)
        if self.style.classes == 2 and 2 * smallest > image_size:
            raise InputError(
                f"digit_size starts at {self.style.digit_size[0]}: two digits of {smallest} pixels have no room in "
                f"{image_size}; let it start below 0.5."
            )

    def __len__(self) -> int:
        return self.num_scenes

    def __getitem__(self, index: int) -> CuedSample:
        if index < 0:
            raise IndexError(f"scene {index} does not exist: indices start at 0")
        scene = self._seeds(index)
        rng = np.random.default_rng(scene)
        classes = _draw_classes(rng, self.style.classes)
        ground = rng.uniform(20, 130, size=3).astype(np.float32)
        most = self.style.classes * self.style.max_per_class
        colours = _lighter_colours(rng, ground, _CLUTTER_COLOURS + most, self.style.contrast)
        canvas = _background(rng, ground, self.image_size, self.style.texture)
        self._lay_clutter(rng, canvas, colours[:_CLUTTER_COLOURS])
        mask, boxes, labels = self._place_instances(rng, canvas, colours[_CLUTTER_COLOURS:], classes)
        planted = None if self.cue.kind == "none" else self.cue.plant(canvas, mask, boxes, classes[0], scene)
        sample: CuedSample = {
            "image": torch.from_numpy(_through_fog(np.clip(canvas, 0, 255), self.style.fog).astype(np.uint8)),
            "label": classes[0] if len(classes) == 1 else _multi_hot(classes),
            "boxes": torch.from_numpy(boxes),
            "instance_labels": torch.from_numpy(np.array(labels)),
            "mask": torch.from_numpy(mask),
            "id": f"{self.split}-{self.seed}-{index:06d}",
            "cue": -1 if planted is None else planted[0],
        }
        if planted is not None:
            sample["cue_box"] = torch.from_numpy(planted[1])
        return sample

    def labels_of(self, index: int) -> list[int]:
        """The classes of a scene, without drawing it."""
        return _draw_classes(np.random.default_rng(self._seeds(index)), self.style.classes)

    def _seeds(self, index: int) -> tuple[int, int, int]:
        """What a scene is drawn from."""
        return self.seed, list(_SPLIT_SHARES).index(self.split), index

    def _lay_clutter(self, rng: np.random.Generator, canvas: Image, colours: Image) -> None:
        """Cover the background with a random window of a random clutter sheet, in this scene's own colours."""
        sheets = _clutter_sheets(self.split, self.style.clutter, self.image_size, self.style.digit_size)
        which, top, left, flip, mirror, transpose = rng.random(6).tolist()
        opacity, colour_index = sheets[int(which * len(sheets))]
        top, left = (int(share * (len(opacity) - self.image_size + 1)) for share in (top, left))
        window = np.s_[top : top + self.image_size, left : left + self.image_size]
        symmetry = np.s_[:: 1 if flip < 0.5 else -1, :: 1 if mirror < 0.5 else -1]
        opacity, colour_index = opacity[window][symmetry], colour_index[window][symmetry]
        if transpose < 0.5:
            opacity, colour_index = opacity.T, colour_index.T
        canvas += opacity * (colours.T.take(colour_index, axis=1, mode="clip") - canvas)  # "clip" skips a slow check

    def _place_instances(
        self, rng: np.random.Generator, canvas: Image, colours: Image, classes: list[int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], list[int]]:
        """Paint the instances; return the instance map [H, W], boxes [n, 4] and the class of each instance."""
        digits, starts = _source_digits(self.split)
        mask = np.zeros(canvas.shape[1:], dtype=np.uint8)
        boxes: list[tuple[int, int, int, int]] = []
        wanted = self._draw_instances(rng, classes)
        cells = self._draw_cells(rng, len(wanted))
        while len(cells) < len(classes):  # a large one in the middle leaves no room for the other class
            cells = self._draw_cells(rng, len(wanted))
        for number, (label, (y, x, side, which, angle)) in enumerate(zip(wanted, cells, strict=False)):
            first, end = starts[label : label + 2]
            alpha = _render(digits[first + int(which * (end - first))], side, angle)
            _paint(canvas, alpha, y, x, colours[number])
            inside = (alpha > 0.5).astype(np.uint8)
            mask[y : y + side, x : x + side] += inside * np.uint8(number + 1)
            left, top, width, height = cv2.boundingRect(inside)
            boxes.append((x + left, y + top, x + left + width, y + top + height))
        return mask, np.array(boxes, dtype=np.float32), wanted[: len(cells)]

    def _draw_instances(self, rng: np.random.Generator, classes: list[int]) -> list[int]:
        """The class of every instance wanted; one of each class come first, for the last ones may find no room."""
        counts = [int(rng.integers(1, self.style.max_per_class + 1)) for _ in classes]
        return [
            label for turn in range(max(counts)) for label, count in zip(classes, counts, strict=True) if turn < count
        ]

    def _draw_cells(self, rng: np.random.Generator, wanted: int) -> list[tuple[int, int, int, float, float]]:
        """Up to ``wanted`` cells that do not overlap: y, x, side, and the chances that pick a digit and its angle."""
        cells: list[tuple[int, int, int, float, float]] = []
        tries = 10 * wanted
        # Uniform places would crowd the middle, for a cell has to lie inside: draw from a U-shaped law instead.
        places = rng.beta(0.6, 0.6, size=(tries, 2)).tolist()
        for (down, across), (which, size, angle) in zip(places, rng.random((tries, 3)).tolist(), strict=True):
            side = _cell_side(size, self.image_size, self.style.digit_size)
            y, x = round(down * (self.image_size - side)), round(across * (self.image_size - side))
            if any(y < v + t and v < y + side and x < u + t and u < x + side for v, u, t, _, _ in cells):
                continue
            cells.append((y, x, side, which, angle))
            if len(cells) == wanted:
                break
        return cells


def _checked_cue(cue: Cue, style: SceneStyle) -> Cue:
    """The cue, where the scenes can carry it."""
    if cue.kind != "none" and style.classes != 1:
        raise InputError(
            f"cue is {cue.kind!r}, but a scene of {style.classes} classes has no one label; set classes: 1."
        )
    return cue


def _draw_classes(rng: np.random.Generator, count: int) -> list[int]:
    """One digit class, or two different ones."""
    first = int(rng.integers(10))
    return [first] if count == 1 else [first, (first + int(rng.integers(1, 10))) % 10]


def _multi_hot(classes: list[int]) -> Tensor:
    label = torch.zeros(len(CLASS_NAMES), dtype=torch.bool)
    label[classes] = True
    return label


def _cell_side(chance: float, image_size: int, digit_size: tuple[float, float]) -> int:
    smallest, largest = (round(share * image_size) for share in digit_size)
    return smallest + int(chance * (largest - smallest + 1))


@cache
def _clutter_sheets(
    split: Split, fragments: int, image_size: int, digit_size: tuple[float, float]
) -> list[tuple[Image, NDArray[np.intp]]]:
    """Sheets of four scenes' side strewn with quarters of the split's digits: strokes like a digit's that are not one.

    The first is empty, the last has ``fragments`` per scene. Each is an opacity and an index into a scene's colours,
    both [4·image_size, 4·image_size]. A scene takes a window of one: painting a scene's fragments one by one took more
    time than all the rest of it.
    """
    rng = np.random.default_rng([list(_SPLIT_SHARES).index(split), fragments, image_size])
    digits, _ = _source_digits(split)
    span, half = 4 * image_size, _CELL // 2
    sheets = []
    for sheet in range(_SHEETS):
        opacity, colour_index = np.zeros((span, span), np.float32), np.zeros((span, span), np.intp)
        for which, *place, size, y, x in rng.random((16 * fragments * sheet // (_SHEETS - 1), 6)).tolist():
            top, left = (int(share * (half + 1)) for share in place)
            fragment = digits[int(which * len(digits)), top : top + half, left : left + half] * _soft_window(half)
            side = _cell_side(size, image_size, digit_size) // 2
            y, x = int(y * (span - side)), int(x * (span - side))
            cell = np.s_[y : y + side, x : x + side]
            alpha = cv2.resize(fragment, (side, side))
            colour_index[cell] = np.where(alpha >= opacity[cell], rng.integers(_CLUTTER_COLOURS), colour_index[cell])
            opacity[cell] = np.maximum(opacity[cell], alpha)
        sheets.append((opacity, colour_index))
    return sheets


@cache
def _interpolation(points: int, size: int, method: int) -> Image:
    """The matrix [points, size] that interpolates a row of random points over the image."""
    return np.ascontiguousarray(cv2.resize(np.eye(points, dtype=np.float32), (size, points), interpolation=method))


@cache
def _soft_window(side: int) -> Image:
    """Opacity [side, side] that fades towards the borders, so that a cut stroke shows no straight edge."""
    fade = np.minimum(1, 4 * np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2)
    return np.outer(fade, fade).astype(np.float32)


def _background(rng: np.random.Generator, ground: Image, size: int, texture: float) -> Image:
    """The ground colour, smooth variations of it, and finer grain: [3, H, W] in 0 to 255."""
    smooth, grain = _interpolation(4, size, cv2.INTER_CUBIC), _interpolation(size // 3, size, cv2.INTER_LINEAR)
    corners = rng.standard_normal((3, len(smooth), len(smooth)), np.float32)
    canvas: Image = np.asarray(smooth.T @ corners @ smooth, dtype=np.float32)
    canvas += np.float32(0.7) * (grain.T @ rng.standard_normal((len(grain), len(grain)), np.float32) @ grain)
    canvas *= np.float32(texture)
    canvas += ground[:, None, None]
    return canvas


def _lighter_colours(rng: np.random.Generator, ground: Image, count: int, contrast: float) -> Image:
    """Random colours [count, 3] whose luminance exceeds the ground's by at least ``contrast`` (the best of four)."""
    candidates = rng.uniform(0, 255, size=(count, 4, 3))
    gain = (candidates - ground) @ np.array([0.299, 0.587, 0.114])  # [count, 4]
    chosen = np.where((gain >= contrast).any(1), (gain >= contrast).argmax(1), gain.argmax(1))
    colours: Image = candidates[np.arange(count), chosen].astype(np.float32)
    return colours


def _render(digit: Image, side: int, chance: float) -> Image:
    """A digit as opacity [side, side] in [0, 1], rotated by up to 15 degrees either way."""
    angle = math.radians(30 * chance - 15)
    scale = _CELL / side
    cos, sin = math.cos(angle) * scale, math.sin(angle) * scale
    centre_out, centre_in = (side - 1) / 2, (_CELL - 1) / 2
    shift_x, shift_y = centre_in - (cos - sin) * centre_out, centre_in - (sin + cos) * centre_out
    matrix = np.array([[cos, -sin, shift_x], [sin, cos, shift_y]])
    opacity = cv2.warpAffine(digit, matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(opacity, dtype=np.float32)


def _through_fog(canvas: Image, fog: float) -> Image:
    """A canvas in 0 to 255, so much of which is white."""
    return canvas if fog == 0 else canvas + np.float32(fog) * (255 - canvas)


def _paint(canvas: Image, alpha: Image, y: int, x: int, colour: Image) -> None:
    """Blend a colour over a cell of the canvas, in place."""
    patch = canvas[:, y : y + len(alpha), x : x + len(alpha)]
    patch += alpha * (colour[:, None, None] - patch)


class DigitScenesDataModule(ImageDataModule):
    """DigitScenes for training and evaluation: fresh training scenes every epoch, the same validation and test scenes.

    Args:
        num_train: training scenes per epoch; epoch e draws scenes e·num_train to (e + 1)·num_train − 1 of the stream.
        num_val: validation scenes.
        num_test: test scenes.
        classes: different digit classes in a scene, 1 or 2; with 2 the labels are multi-hot. See :class:`SceneStyle`.
        max_instances: at most this many instances of the class; see :class:`SceneStyle`.
        clutter: at most about this many digit fragments.
        contrast: by how much digits are lighter than the ground.
        texture: amplitude of the background's texture.
        fog: how much of every pixel is white; see :class:`SceneStyle`.
        seed: of the streams of scenes.
        cue: ``"none"``, or the kind of cue planted in the scenes of every split: ``"patch"``, ``"stamp"``, ``"frame"``,
            ``"background"``, ``"tint"`` or ``"inside"``; see :class:`litcam.data.cues.Cue`.
        cue_strength: chance that the cue's class is the label, from 0.1 to 1.
        cue_seed: of the cues.
        redraw_cue: in validation and test scenes draw the class of each cue uniformly, whatever the label: what a model
            that relies on the cue loses there it owed to the cue. Training scenes keep theirs.
        batch_size: images per batch and process.
        num_workers: processes that draw scenes beside the training; 0 draws them in the training process.
    """

    def __init__(
        self,
        num_train: int = 10_000,
        num_val: int = 1_000,
        num_test: int = 2_000,
        classes: int = 1,
        max_instances: int = 3,
        clutter: int = 10,
        contrast: float = 50.0,
        texture: float = 22.0,
        fog: float = 0.0,
        seed: int = 0,
        cue: CueKind = "none",
        cue_strength: float = 1.0,
        cue_seed: int = 0,
        redraw_cue: bool = False,
        batch_size: int = 64,
        num_workers: int = 1,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.save_hyperparameters()
        self.sizes: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
        self.style = SceneStyle(
            classes=classes,
            max_instances=max_instances,
            clutter=clutter,
            contrast=contrast,
            texture=texture,
            fog=fog,
        )
        self.seed = seed
        self.cue = _checked_cue(Cue(cue, cue_strength, cue_seed, redraw_cue), self.style)

    @property
    def class_names(self) -> list[str]:
        return CLASS_NAMES

    def train_sampler(self, dataset: Dataset[Any]) -> StreamSampler:
        """This process's share of the epoch's scenes."""
        rank, world = rank_and_world()
        return StreamSampler(dataset, world, rank, shuffle=False, drop_last=True)

    def build_dataset(self, split: Literal["train", "val", "test"]) -> DigitScenes:
        height, width = self.image_size
        if height != width:
            raise InputError(f"DigitScenes are square, but the model takes images of {height} by {width}.")
        cue = self.cue if split != "train" else replace(self.cue, redraw=False)
        return DigitScenes(
            split, self.sizes[split], height, self.seed, self.style, cue.kind, cue.strength, cue.seed, cue.redraw
        )
