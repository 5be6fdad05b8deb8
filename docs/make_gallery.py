"""Draw the gallery of the README, every method on the same scenes: python docs/make_gallery.py CHECKPOINT"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import litcam
from litcam.callbacks.heatmap_logger import TRUE_BOX
from litcam.data import Batch, DigitScenesDataModule, boxes_of, present_classes
from litcam.errors import LitcamError
from litcam.evaluation.runs import load_run
from litcam.heatmaps import overlay

OUTPUT = Path(__file__).parent / "gallery.png"
SCENES, TILE, GAP, CAPTION, COLUMNS = 2, 80, 4, 20, 3
CELL_WIDTH = SCENES * 2 * (TILE + GAP) + 3 * GAP
CELL_HEIGHT = CAPTION + TILE + 3 * GAP
EXTRAS = ["agcam:gradient=full", "reciprocam:kernel=dirac", "captum:IntegratedGradients", "captum:Occlusion"]
QUIET = {"random", "uniform"}  # noise and nothing: not worth a picture

Pixels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="of a run of train.py on DigitScenes")
    module, data = load_run(parser.parse_args().checkpoint, {"classes": 2, "num_workers": 0, "batch_size": 200})
    assert isinstance(data, DigitScenesDataModule)
    module.eval()
    raw = next(iter(data.val_dataloader()))
    batch = data.normalize(raw)
    classes = present_classes(batch)
    with torch.no_grad():
        probabilities = module(batch["image"]).softmax(1).gather(1, classes)
    chosen = probabilities.amin(1).topk(SCENES).indices  # where the model sees both classes
    images, targets = batch["image"][chosen], classes[chosen]
    scenes = [raw["image"][i].permute(1, 2, 0).numpy() for i in chosen]
    cells = [draw_cell("the two classes", truth(raw, chosen.tolist(), targets))]
    for text in sorted([*set(litcam.list_explainers()) - QUIET, *EXTRAS]):
        name, options = litcam.explainers.parse_explainer(text)
        try:
            explanation = litcam.create_explainer(name, module, **options)(images, targets)
        except LitcamError as reason:
            print(f"left out: {reason}")
            continue
        maps = explanation.upsample((images.shape[-2], images.shape[-1])).numpy()
        tiles = [overlay(scene, heatmap) for scene, pair in zip(scenes, maps, strict=True) for heatmap in pair]
        cells.append(draw_cell(text, tiles))
    rows = -(-len(cells) // COLUMNS)
    gallery = Image.new("RGB", (COLUMNS * CELL_WIDTH, rows * CELL_HEIGHT), "white")
    for number, cell in enumerate(cells):
        gallery.paste(cell, (number % COLUMNS * CELL_WIDTH, number // COLUMNS * CELL_HEIGHT))
    gallery.save(OUTPUT, optimize=True)


def truth(raw: Batch, chosen: list[int], targets: torch.Tensor) -> list[Pixels]:
    """Each scene once per class, with the boxes of that class."""
    tiles = []
    for index, classes in zip(chosen, targets, strict=True):
        of_image = raw["boxes"][:, 0] == index
        for target in classes:
            tile = Image.fromarray(raw["image"][index].permute(1, 2, 0).numpy())
            draw = ImageDraw.Draw(tile)
            for x0, y0, x1, y1 in boxes_of(raw, index)[raw["instance_labels"][of_image] == target].tolist():
                draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=TRUE_BOX)
            tiles.append(np.asarray(tile))
    return tiles


def draw_cell(caption: str, tiles: list[Pixels]) -> Image.Image:
    """Tiles side by side under a caption."""
    cell = Image.new("RGB", (CELL_WIDTH, CELL_HEIGHT), "white")
    ImageDraw.Draw(cell).text((GAP, 3), caption, fill=(30, 30, 30), font=ImageFont.load_default(size=13))
    for column, tile in enumerate(tiles):
        left = GAP + column * (TILE + GAP) + column // 2 * GAP
        cell.paste(Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.BICUBIC), (left, CAPTION))
    return cell


if __name__ == "__main__":
    main()
