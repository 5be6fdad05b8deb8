"""HeatmapLogger: the same images every epoch, and what the model looked at."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Literal

import cv2
import lightning as L
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from litcam.callbacks.initial_validation import epochs_trained
from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.pictures import Pictures
from litcam.callbacks.reporting import log_image, run_folder, save_png
from litcam.callbacks.shared import Explained, Target, gather
from litcam.data.batch import boxes_of
from litcam.errors import check_at_least, check_threshold
from litcam.heatmaps import colorize, component_boxes, overlay
from litcam.logits import probabilities

Pixels = NDArray[np.uint8]

_TILE, _GAP, _CAPTION = 128, 4, 22  # pixels
_PAPER, _INK, _WRONG = (255, 255, 255), (30, 30, 30), (200, 30, 30)
TRUE_BOX, FOUND_BOX = (60, 220, 60), (255, 140, 0)


class HeatmapLogger(ExplanationMonitor):
    """Logs a fixed panel of validation images: the image, the heatmap over it, and found beside true boxes.

    Each image is captioned with true and predicted class and the predicted one's probability, in red when it is wrong;
    in multi-label data each of its classes has an entry, captioned with its probability, in red below one half.
    The panel goes to TensorBoard as ``val/<explainer>/heatmaps``, one image whose slider runs over the epochs, and to
    the run folder as ``heatmaps/<explainer>/epoch_001.png``, by the epochs trained. Found boxes (orange) surround where
    the map exceeds the threshold; true ones are green and drawn where the batches have ``boxes``.

    Args:
        explainer: name of the explanation method.
        explainer_options: its options.
        num_images: size of the panel.
        threshold: of the map, for the found boxes.
        target: explain the ``"true"`` or the ``"predicted"`` class.
        columns: images side by side.
        colormap: name of a matplotlib colour map.
        seed: of the choice of images.

    Raises:
        InputError: for an option out of its range.
    """

    def __init__(
        self,
        explainer: str = "agcam",
        explainer_options: dict[str, Any] | None = None,
        num_images: int = 16,
        threshold: float = 0.5,
        target: Target = "true",
        columns: int = 4,
        colormap: str = "turbo",
        seed: int = 0,
    ) -> None:
        super().__init__(explainer, explainer_options, target, num_images, seed)
        check_threshold(threshold)
        check_at_least("columns", columns)
        colorize(np.zeros((1, 1)), colormap)  # an unknown colour map fails here, before any training
        self.threshold = threshold
        self.columns = columns
        self.colormap = colormap

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.entries: dict[tuple[int, int], Pixels] = {}  # by image and class
        self.pictures = Pictures(trainer)

    def consume(self, explained: Explained) -> None:
        images = self.pictures.pixels(explained)
        large = explained.explanation.upsample((_TILE, _TILE)).cpu().numpy()
        masks = (explained.heatmaps > self.threshold).cpu().numpy()
        right = explained.correct.tolist()
        for position, index in enumerate(explained.indices.tolist()):
            label, row = int(explained.labels[position]), int(explained.rows[position])
            of_class = label if explained.multi_label else None
            self.entries[index, label] = draw_entry(
                images[position],
                large[position],
                component_boxes(masks[position]).tolist(),
                boxes_of(explained.batch, row, of_class).tolist() if "boxes" in explained.batch else [],
                self._caption(explained, position, label),
                right=right[position],
                colormap=self.colormap,
            )

    def conclude(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        entries, folder = gather(self.entries), run_folder(trainer)  # both are collectives
        if not trainer.is_global_zero or not entries:
            return
        panel = draw_panel([entry for _, entry in sorted(entries.items(), key=itemgetter(0))], self.columns)
        log_image(trainer, f"{stage}/{self.tag}heatmaps", panel)
        if folder is not None:
            name = f"epoch_{epochs_trained(trainer):03d}.png" if stage == "val" else "test.png"
            save_png(folder / "heatmaps" / self.explainer / name, panel)

    def _caption(self, explained: Explained, position: int, label: int) -> str:
        logits = explained.explanation.logits[position : position + 1].float()
        shares = probabilities(logits, regression=False, multi_label=explained.multi_label)[0]
        if explained.multi_label:
            return f"{self.pictures.name(label)} {float(shares[label]):.0%}"
        probability, predicted = (value.item() for value in shares.max(0))
        return f"{self.pictures.name(label)}, predicted {self.pictures.name(int(predicted))} {probability:.0%}"


def draw_entry(
    image: Pixels,
    heatmap: NDArray[Any],
    found_boxes: Sequence[Sequence[float]],
    true_boxes: Sequence[Sequence[float]],
    caption: str,
    right: bool,
    colormap: str = "turbo",
) -> Pixels:
    """Image, overlay and boxes side by side over a caption.

    Args:
        image: [H, W, 3].
        heatmap: [128, 128] in [0, 1].
        found_boxes: (x0, y0, x1, y1) in pixels of the image.
        true_boxes: likewise.
        caption: the line below, cut to fit.
        right: whether the prediction is right; otherwise the caption is red.
        colormap: of the overlay.
    """
    height, width = image.shape[:2]
    enlarged = np.asarray(cv2.resize(image, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    entry = Image.new("RGB", (3 * _TILE + 2 * _GAP, _TILE + _CAPTION), _PAPER)
    boxes_tile = Image.fromarray(enlarged)
    draw = ImageDraw.Draw(boxes_tile)
    for boxes, colour in ((true_boxes, TRUE_BOX), (found_boxes, FOUND_BOX)):
        for x0, y0, x1, y1 in boxes:
            left, top = x0 * _TILE / width, y0 * _TILE / height
            right_end, bottom = max(left, x1 * _TILE / width - 1), max(top, y1 * _TILE / height - 1)
            draw.rectangle((left, top, right_end, bottom), outline=colour, width=2)
    tiles = [Image.fromarray(enlarged), Image.fromarray(overlay(enlarged, heatmap, colormap=colormap)), boxes_tile]
    for column, tile in enumerate(tiles):
        entry.paste(tile, (column * (_TILE + _GAP), 0))
    font = ImageFont.load_default(size=13)
    text = ImageDraw.Draw(entry)
    while text.textlength(caption, font=font) > entry.width - 4 and len(caption) > 4:
        caption = caption[:-2].rstrip("…") + "…"
    text.text((2, _TILE + 3), caption, fill=_INK if right else _WRONG, font=font)
    return np.asarray(entry)


def draw_panel(entries: Sequence[Pixels], columns: int) -> Pixels:
    """Entries of equal size in rows of ``columns``."""
    height, width = entries[0].shape[:2]
    rows = -(-len(entries) // columns)
    columns = min(columns, len(entries))
    panel = np.full((rows * (height + _GAP) + _GAP, columns * (width + 3 * _GAP) + _GAP, 3), 255, np.uint8)
    for number, entry in enumerate(entries):
        y, x = _GAP + (number // columns) * (height + _GAP), _GAP + (number % columns) * (width + 3 * _GAP)
        panel[y : y + height, x : x + width] = entry
    return panel
