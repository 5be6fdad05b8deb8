"""Planted cues: marks in a scene whose class agrees with the label as often as one says, and can be redrawn for a test.

What a model that cheats would look at. Knows scenes as arrays and no dataset.
"""

from dataclasses import dataclass
from typing import Literal, NotRequired

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from litcam.data.batch import Sample
from litcam.errors import InputError, check_at_least, check_choice

CueKind = Literal["none", "patch", "stamp", "frame", "background", "tint", "inside"]
Pixels = NDArray[np.bool_]

KINDS = ("none", "patch", "stamp", "frame", "background", "tint", "inside")
COLOURS = np.array(  # at least 127 of 255 apart, and from the dark grounds of the scenes
    [
        (255, 0, 0),  # 0: red
        (255, 128, 0),  # 1: orange
        (255, 255, 0),  # 2: yellow
        (0, 255, 0),  # 3: green
        (0, 255, 255),  # 4: cyan
        (0, 128, 255),  # 5: azure
        (0, 0, 255),  # 6: blue
        (255, 0, 255),  # 7: magenta
        (255, 128, 192),  # 8: pink
        (255, 255, 255),  # 9: white
    ],
    dtype=np.float32,
)
CHANCE = 1 / len(COLOURS)

PATCH, STAMP, MARGIN, FRAME = 0.16, 0.14, 0.03, 0.04  # of the image side: 10, 9, 2 and 3 of 64 pixels
INSIDE = 0.3  # side of the mark, as a share of the box's (of a square of its area): some 9 % of the box
TINT = 0.5  # opacity of the colour over the whole image
WAVES, AMPLITUDE = (6.4, 12.8), 25.0  # stripes per image side, broad and fine, and how much they lighten and darken


class CuedSample(Sample):
    """A sample that may carry a cue.

    Attributes:
        cue: class of the cue, −1 without one; int64 [B] in a batch.
        cue_box: float32 [4], the smallest box around the cue's pixels as ``boxes`` has it, zeros without; only in
            datasets with cues; [B, 4] in a batch.
    """

    cue: int
    cue_box: NotRequired[Tensor]


@dataclass(frozen=True)
class Cue:
    """A mark in every scene, in the colour (or pattern) of one of the ten classes.

    ``"patch"`` is a square at a random place and ``"stamp"`` a disc in a random corner, clear of the boxes of all
    digits; where these leave no room the scene has no cue. ``"frame"`` and ``"background"`` (stripes; the class is
    their direction and width) lie under the digits, whose pixels they leave alone. ``"tint"`` is a colour over the
    whole image. ``"inside"`` is a small square in the box of one digit. Boxes and masks of the digits stay.

    A scene's cue follows from the seeds and the scene's index alone.

    Args:
        kind: one of these; ``"none"`` for no cue.
        strength: chance that the cue's class is the label, from 0.1 (the label has no say) to 1; the other classes
            are equally likely.
        seed: of the cue's class and place.
        redraw: draw the class of every cue uniformly, whatever the label; all else stays as it is, bit for bit.

    Raises:
        InputError: for an unknown kind, a strength or seed out of its range, or nothing to redraw.
    """

    kind: CueKind = "none"
    strength: float = 1.0
    seed: int = 0
    redraw: bool = False

    def __post_init__(self) -> None:
        check_choice("cue", self.kind, KINDS)
        check_at_least("cue_seed", self.seed, least=0)
        if not CHANCE <= self.strength <= 1:
            raise InputError(
                f"cue_strength is {self.strength}; it has to lie between {CHANCE} (chance, with ten classes) and 1."
            )
        if self.redraw and self.kind == "none":
            raise InputError(f"redraw_cue needs a cue; set cue to one of {', '.join(KINDS[1:])}, as in the training.")

    def draw(self, label: int, scene: tuple[int, ...]) -> tuple[int, tuple[float, float, float]]:
        """The class of the cue in a scene, named by its seeds, and three chances that place it."""
        rng = np.random.default_rng([*scene, 1 + self.seed])  # not 0, which numpy does not tell from no number
        agrees, other, redrawn, *place = rng.random(6).tolist()
        if self.redraw:
            drawn = int(len(COLOURS) * redrawn)
        elif agrees < self.strength:
            drawn = label
        else:
            drawn = (label + 1 + int((len(COLOURS) - 1) * other)) % len(COLOURS)
        return drawn, (place[0], place[1], place[2])

    def plant(
        self,
        canvas: NDArray[np.float32],
        mask: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        label: int,
        scene: tuple[int, ...],
    ) -> tuple[int, NDArray[np.float32]]:
        """Paint the cue, in place.

        Args:
            canvas: [3, H, W] in 0 to 255, square.
            mask: [H, W], above 0 on digits.
            boxes: [n, 4] of the digits.
            label: of the scene.
            scene: numbers that name it, the seed among them.

        Returns:
            The cue's class (−1: there was no room) and box [4].
        """
        drawn, place = self.draw(label, scene)
        pixels = _pixels(self.kind, mask, boxes, place)
        if pixels is None:
            return -1, np.zeros(4, np.float32)
        if self.kind == "background":
            canvas += pixels * _stripes(len(mask), drawn, place[0])
        else:
            opacity = np.float32(TINT if self.kind == "tint" else 1)
            blended = opacity * COLOURS[drawn][:, None, None] + (1 - opacity) * canvas
            np.copyto(canvas, blended, where=pixels)
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        return drawn, np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def _pixels(
    kind: CueKind, mask: NDArray[np.uint8], boxes: NDArray[np.float32], place: tuple[float, float, float]
) -> Pixels | None:
    """Where the cue lies: bool [H, W]; None if there is no room for it."""
    size = len(mask)
    if kind == "tint":
        return np.ones(mask.shape, dtype=np.bool_)
    if kind == "background":
        return np.asarray(mask == 0)
    if kind == "frame":
        width = max(1, round(FRAME * size))
        border = np.ones(mask.shape, dtype=np.bool_)
        border[width:-width, width:-width] = False
        return np.asarray(border & (mask == 0))
    pixels = np.zeros(mask.shape, dtype=np.bool_)
    if kind == "inside":
        y, x, side = _place_inside(boxes, place)
        pixels[y : y + side, x : x + side] = True
        return pixels
    side = round((PATCH if kind == "patch" else STAMP) * size)
    free = np.flatnonzero(_free_places(boxes, size, side, corners=kind == "stamp"))
    if not len(free):
        return None
    y, x = divmod(int(free[int(place[0] * len(free))]), size - side + 1)
    pixels[y : y + side, x : x + side] = _disc(side) if kind == "stamp" else True
    return pixels


def _free_places(boxes: NDArray[np.float32], size: int, side: int, corners: bool) -> Pixels:
    """Where a square may begin (y, x) without touching a box: bool [size − side + 1, the same]."""
    free = np.ones((size - side + 1, size - side + 1), dtype=np.bool_)
    if corners:
        near = round(MARGIN * size)
        free[:] = False
        free[np.ix_([near, -1 - near], [near, -1 - near])] = True
    for x0, y0, x1, y1 in boxes.astype(int).tolist():
        free[max(0, y0 - side + 1) : y1, max(0, x0 - side + 1) : x1] = False
    return free


def _place_inside(boxes: NDArray[np.float32], place: tuple[float, float, float]) -> tuple[int, int, int]:
    """A small square in one of the boxes: y, x and side."""
    x0, y0, x1, y1 = boxes[int(place[0] * len(boxes))].astype(int).tolist()
    width, height = x1 - x0, y1 - y0
    side = min(width, height, max(2, round(INSIDE * (width * height) ** 0.5)))
    return y0 + int(place[1] * (height - side + 1)), x0 + int(place[2] * (width - side + 1)), side


def _disc(side: int) -> Pixels:
    """The pixels of a square whose centres lie in its inscribed circle: bool [side, side]."""
    offsets = (np.arange(side) + 0.5 - side / 2) ** 2
    return np.asarray(offsets[:, None] + offsets <= (side / 2) ** 2)


def _stripes(size: int, drawn: int, phase: float) -> NDArray[np.float32]:
    """Stripes of a class: one of five directions, broad or fine; [size, size] around 0."""
    angle, waves = np.pi * (drawn % 5) / 5, WAVES[drawn // 5]
    along = (np.arange(size) + 0.5) / size
    wave = np.sin(2 * np.pi * (waves * (np.cos(angle) * along[:, None] + np.sin(angle) * along) + phase))
    return np.asarray(AMPLITUDE * wave, dtype=np.float32)
