"""Draw the pictures of the README from a finished run: python docs/make_figures.py runs/digits/version_0

report.png is the top of evaluate.py's report.html, seen by Chromium:
chromium --headless --hide-scrollbars --window-size=1200,1470 --virtual-time-budget=5000 --screenshot report.html
"""

import argparse
import csv
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

DOCS = Path(__file__).parent
CURVES = {
    "accuracy": ["val/accuracy"],
    "pointing game": ["val/agcam/pointing_game", "val/center/pointing_game", "val/random/pointing_game"],
    "IoU with the boxes": ["val/agcam/iou", "val/center/iou", "val/random/iou"],
    "ABPC": ["val/agcam/abpc", "val/center/abpc", "val/random/abpc"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run of train.py")
    run: Path = parser.parse_args().run
    draw_curves(run / "history.csv", DOCS / "curves.png")
    Image.open(run / "drift" / "agcam" / "drift.png").save(DOCS / "filmstrip.png", optimize=True)


def draw_curves(history: Path, output: Path) -> None:
    """Accuracy and explanation metrics over the epochs trained, from 0 on, controls dashed."""
    with history.open() as file:
        rows = list(csv.DictReader(file))
    epochs = [int(float(row["epoch"])) for row in rows]
    figure = Figure(figsize=(11, 2.6), layout="constrained", dpi=110)
    for axes, (title, tags) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for tag in tags:
            explainer = tag.split("/")[1] if tag.count("/") == 2 else "model"
            style = {"linestyle": "-", "marker": "o"} if explainer in ("model", "agcam") else {"linestyle": "--"}
            axes.plot(epochs, [float(row[tag]) for row in rows], label=explainer, **style)
        axes.set(title=title, xlabel="epochs trained", xticks=epochs)
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.0 if title != "ABPC" else None)
        axes.grid(alpha=0.3)
        if len(tags) > 1:
            axes.legend(frameon=False, fontsize="small")
    figure.savefig(output)


if __name__ == "__main__":
    main()
