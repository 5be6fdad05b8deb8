"""What a perturbation curve costs, in fp32 forwards of the same image, and what bfloat16 changes about its area.

python benchmarks/perturbation.py                       # vit_base_patch16_224 with random weights: several minutes
python benchmarks/perturbation.py --model vit_tiny_patch16_224 --images 2 --rounds 2          # to try it out

Time: under the protocol of AGCAM; a plain forward of the images and their perturbation, in single precision and under
bfloat16 autocast, take turns in one loop, and a ratio is that of neighbours in time; shown are the median of the ratios
and their quartiles. The logits of the images are known beforehand, as in a validation. bfloat16 saves time where the
processor has instructions for it (avx512_bf16, amx_bf16 in /proc/cpuinfo) or on a GPU, and costs time elsewhere.

Area: the packaged model on the scenes of the default run, the maps of agcam in single precision; ABPC, LeRF and MoRF
with forwards in either precision, of the mean over images and of the image that changes most.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import timm
import torch
from machine import add_options, describe, model_sizes, prepare
from rich.table import Table
from torch import Tensor, nn

import litcam
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule
from litcam.metrics import Perturbation
from litcam.metrics.functional import Precision

INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


class Counted(nn.Module):
    """A net that counts the images it sees."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.images += len(images)
        logits: Tensor = self.net(images)
        return logits


def seconds(work: object, device: str) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    work()  # type: ignore[operator]
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure_time(options: argparse.Namespace) -> dict[Precision, list[float]]:
    """Ratios of a perturbation's time to that of a plain forward of the same images."""
    torch.manual_seed(0)
    net = timm.create_model(options.model, pretrained=False, **model_sizes(options)).to(options.device).eval()
    images = torch.randn(options.images, 3, *net.patch_embed.img_size, device=options.device)
    heatmaps = torch.rand(len(images), *images.shape[-2:], device=options.device)
    counted = Counted(net)
    ratios: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    with torch.inference_mode():
        logits = net(images)
        targets = logits.argmax(1)
        for _ in range(options.rounds):
            for precision, found in ratios.items():
                metric = Perturbation(precision=precision, batch_size=options.batch_size).to(options.device)
                forward = seconds(lambda: net(images), options.device)
                found.append(seconds(lambda: metric.update(counted, images, heatmaps, targets, logits), options.device))  # noqa: B023  # called at once
                forward = (forward + seconds(lambda: net(images), options.device)) / 2
                found[-1] /= forward
    print(f"{counted.images / 2 / options.rounds / len(images):.2f} forwards per image")
    return ratios


def measure_area(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """By score, how far bfloat16 moves the mean over images, and the image that it moves most."""
    module = ViTClassifier("vit_mini_patch8_64", 10, True).eval().to(options.device)
    data = DigitScenesDataModule(num_val=options.scenes, batch_size=options.scenes, num_workers=0)
    data.use_data_config(module.data_config)
    batch = data.normalize(next(iter(data.val_dataloader())))
    images, labels = batch["image"].to(options.device), batch["label"].to(options.device)
    heatmaps = litcam.create_explainer("agcam", module)(images, labels).upsample((64, 64))
    rows = {}
    for precision in ("fp32", "bf16"):
        metric = Perturbation(precision=precision, batch_size=options.batch_size)
        rows[precision] = metric.measure(module, images, heatmaps, labels).rows
    scores = {name: metric.scores(row, torch.ones(len(row))) for name, row in rows.items()}
    changes = {name: (scores["bf16"][name] - scores["fp32"][name]) for name in ("lerf", "morf", "abpc")}
    return {name: (float(change.mean().abs()), float(change.abs().max())) for name, change in changes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--images", type=int, default=4, help="in the timed batch")
    parser.add_argument("--batch_size", type=int, default=16, help="perturbed images per forward")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=256, help="images of the areas")
    options = parser.parse_args()
    console = prepare(options)
    console.print(f"{options.model}, {describe(options.device)}")
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if options.device == "cpu" and not any(flag in flags for flag in INSTRUCTIONS):
        console.print("This processor has no bfloat16 instructions: expect no gain.")
    table = Table("precision", "time in fp32 forwards (quartiles)")
    for precision, ratios in measure_time(options).items():
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        table.add_row(precision, f"{middle:.2f} ({low:.2f} to {high:.2f})")
    console.print(table)
    table = Table("score", "mean changed by", "one image by at most", title=f"bf16, {options.scenes} scenes")
    for name, (mean, most) in measure_area(options).items():
        table.add_row(name, f"{mean:.5f}", f"{most:.5f}")
    console.print(table)


if __name__ == "__main__":
    main()
