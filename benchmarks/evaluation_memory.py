"""What scoring many methods adds to the memory of the model, and how many images per second it takes.

python benchmarks/evaluation_memory.py                                     # ViT-S/14 at 224 pixels: several minutes
python benchmarks/evaluation_memory.py --methods agcam relevance --batch_sizes 4 32 --rounds 3
python benchmarks/evaluation_memory.py --model vit_mini_patch8_64 --img_size 64 --images 8      # to try it out

Photographs of smooth shapes are made in a temporary folder; the net has random weights. Every evaluation runs in a
process of its own. Memory is the largest resident set while the images are scored (VmHWM of /proc/self/status, set back
through /proc/self/clear_refs; Linux only) less what was resident before: the model and the libraries. Images per
second count the scoring alone, without the start of the process. The batch sizes take turns, round after round; a ratio
is that of the same round to the first batch size, so that a machine that slows down for a while slows all.
"""

import argparse
import multiprocessing
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import torch
from machine import add_options, describe, prepare
from rich.table import Table

from litcam.classifier import ViTClassifier
from litcam.data import FolderDataModule
from litcam.evaluation import evaluate

METHODS = (
    *("agcam", "attention_gradcam", "evidence", "generic_attention", "gradcam", "hirescam", "legrad", "libragrad"),
    *("raw_attention", "relevance", "rollout", "saw", "tokentm"),
)
MIB = 2**20
Found = tuple[float, float]  # bytes beyond the model, images per second


def make_images(folder: Path, count: int) -> None:
    """Photographs of two classes, as many to train as to validate."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(count):
            path = folder / split / f"class{number % 2}" / f"{number:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            cv2.imwrite(str(path), cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC))


def resident(name: str) -> int:
    """Bytes of a line of this process's status."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None  # Linux writes it for every process
    return int(found[1]) * 1024


def score(folder: Path, batch_size: int, options: argparse.Namespace) -> Found:
    """Score the images of a folder in this process."""
    torch.set_num_threads(options.threads or torch.get_num_threads())
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": options.img_size, "depth": options.depth}
    kwargs = {name: size for name, size in sizes.items() if size is not None}
    module = ViTClassifier(options.model, 2, pretrained=False, model_kwargs=kwargs).to(options.device).eval()
    data = FolderDataModule(str(folder), batch_size=batch_size, num_workers=0)
    data.use_data_config(module.data_config)
    with torch.inference_mode():
        size = tuple(module.data_config["input_size"])
        module(torch.zeros(1, *size, device=options.device))  # loads the code
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began = time.perf_counter()
    evaluate(module, data, options.methods, ["perturbation"], perturbation_images=options.perturbation_images)
    return resident("VmHWM") - before, options.images / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    options = parse()
    console = prepare(options)
    found: dict[int, list[Found]] = {size: [] for size in options.batch_sizes}
    with tempfile.TemporaryDirectory() as name:
        make_images(Path(name), options.images)
        for _ in range(options.rounds):
            for batch_size, results in found.items():
                print(f"measuring batches of {batch_size}", file=sys.stderr)
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                    results.append(fresh.submit(score, Path(name), batch_size, options).result())
    console.print(
        f"{options.model}, {len(options.methods)} methods, {options.images} images, {options.perturbation_images} of "
        f"them perturbed; {describe(options.device)}; {options.rounds} rounds"
    )
    table = Table("batch size")
    for column in ("peak beyond the model, MiB", "images/s", "ratio of images/s"):
        table.add_column(column, justify="right")
    first = found[options.batch_sizes[0]]
    for batch_size, results in found.items():
        peak = max(memory for memory, _ in results) / MIB
        ratios = [rate / of_first for (_, rate), (_, of_first) in zip(results, first, strict=True)]
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(str(batch_size), f"{peak:.0f}", f"{median(rate for _, rate in results):.2f}", spread)
    console.print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Memory and speed of an evaluation, by batch size.")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="explainers, with options if wanted")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[32, 8], help="images at a time")
    parser.add_argument("--images", type=int, default=32, help="images to score")
    parser.add_argument("--perturbation_images", type=int, default=0, help="of those, for the perturbation curves")
    parser.add_argument("--rounds", type=int, default=1, help="evaluations of each batch size")
    add_options(parser)
    parser.set_defaults(model="vit_small_patch14_dinov2.lvd142m", img_size=224)
    return parser.parse_args()


if __name__ == "__main__":
    main()
