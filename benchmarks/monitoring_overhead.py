"""What it costs to watch explanations in every validation epoch.

python benchmarks/monitoring_overhead.py                                   # vit_base_patch16_224, several minutes
python benchmarks/monitoring_overhead.py --rounds 10 --batches 8 --batch_size 16
python benchmarks/monitoring_overhead.py --model vit_tiny_patch16_224 --img_size 64 --depth 4   # to try it out

Compared are three validation epochs of the same ViTClassifier over the same images in memory:
- plain: ``Trainer.validate`` without callbacks;
- monitored: with HeatmapLogger and LocalizationMonitor, both of agcam;
- published: with a callback that makes the same maps the published way (benchmarks/published.py: image by image, by
  autograd through N×N attention) and gives them to the same Localization metric. It draws no panel.

The epochs take turns in one process, round after round; a ratio is that to the plain epoch of the same round, so that a
machine that slows down for a while slows both. Timed is what Lightning does from on_validation_start to
on_validation_end, logging to TensorBoard in a temporary folder among it. Weights and images are random: the IoU says
nothing, but both ways have to find the same one. A panel costs as much in a short epoch as in a long one: in the few
batches of this benchmark it weighs more than in a real epoch (``--no-panel`` leaves it out). Where other work shares
the cores, torch's threads wait for each other, most of all in small operations: then use ``--threads 1``.
"""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from machine import add_options, describe, model_sizes, prepare
from published import PublishedAGCAM
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from litcam.callbacks import HeatmapLogger, LocalizationMonitor
from litcam.callbacks.reporting import log_scalars
from litcam.classifier import ViTClassifier
from litcam.data import Batch, box_regions, collate
from litcam.heatmaps import upsample
from litcam.metrics import Localization

NUM_CLASSES = 1000
IOU_TOLERANCE = 1e-3  # rounding moves a pixel over the threshold now and then


class RandomScenes(Dataset[dict[str, Any]]):
    """Normalised noise with one or two boxes per image, all in memory.

    Args:
        length: number of images.
        size: (H, W) of the images.
        num_classes: of the labels.
    """

    def __init__(self, length: int, size: tuple[int, int], num_classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(length, 3, *size, generator=generator)
        self.labels = torch.randint(num_classes, (length,), generator=generator).tolist()
        self.boxes = [self._draw_boxes(size, 1 + i % 2, generator) for i in range(length)]

    @staticmethod
    def _draw_boxes(size: tuple[int, int], count: int, generator: torch.Generator) -> Tensor:
        """Boxes [count, 4] (x0, y0, x1, y1), each side a quarter to three quarters of the image's."""
        height, width = size
        sides = 0.25 + 0.5 * torch.rand(count, 2, generator=generator)
        corners = torch.rand(count, 2, generator=generator) * (1 - sides)
        return torch.cat([corners, corners + sides], 1) * torch.tensor([width, height, width, height])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = torch.zeros(self.images.shape[-2:], dtype=torch.uint8)
        for number, (x0, y0, x1, y1) in enumerate(self.boxes[index].round().int().tolist(), start=1):
            mask[y0:y1, x0:x1] = number
        return {
            "image": self.images[index],
            "label": self.labels[index],
            "boxes": self.boxes[index],
            "mask": mask,
            "id": f"noise_{index}",
        }


class PublishedMonitor(L.Callback):
    """Localization of AGCAM as a validation epoch would have it without litcam: image by image, by autograd.

    Args:
        weight_gradients: see :class:`PublishedAGCAM`.
    """

    def __init__(self, weight_gradients: bool) -> None:
        self.weight_gradients = weight_gradients
        self.metric = Localization()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.agcam = PublishedAGCAM(pl_module, self.weight_gradients)
        self.metric.to(pl_module.device)
        self.metric.reset()

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        images, regions = batch["image"], box_regions(batch)
        height, width = images.shape[-2:]
        for i in range(len(images)):
            maps = self.agcam(images[i : i + 1], batch["label"][i : i + 1])
            self.metric.update(upsample(maps, (height, width)), regions[i : i + 1])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        log_scalars(pl_module, "val/agcam/", self.metric.compute())


class Stopwatch(L.Callback):
    """Seconds of the last validation epoch; to stand before the callbacks whose time it takes."""

    seconds = 0.0

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = self._now(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = self._now(pl_module) - self._start

    @staticmethod
    def _now(pl_module: L.LightningModule) -> float:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        return time.perf_counter()


class Epoch:
    """One way to validate: a trainer of its own, used again and again.

    Args:
        folder: where its logs and panels go.
        device: ``"cpu"`` or ``"cuda"``.
        callbacks: what watches.
    """

    def __init__(self, folder: str, device: str, callbacks: list[L.Callback]) -> None:
        self.stopwatch = Stopwatch()
        self.trainer = L.Trainer(
            accelerator=device,
            devices=1,
            logger=TensorBoardLogger(folder),
            callbacks=[self.stopwatch, *callbacks],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            num_sanity_val_steps=0,
        )

    def run(self, module: ViTClassifier, loader: DataLoader[Any]) -> float:
        """Seconds of an epoch."""
        self.trainer.validate(module, loader, verbose=False)
        return self.stopwatch.seconds

    @property
    def iou(self) -> float:
        """What the last epoch logged."""
        return float(self.trainer.callback_metrics["val/agcam/iou"])


def main() -> None:
    """Measure and print."""
    options = parse()
    console = prepare(options)
    quieten()
    module = build(options)
    size = module.data_config["input_size"][1:]
    warm_up, loader = (load(batches, options.batch_size, size) for batches in (1, options.batches))
    images = options.batches * options.batch_size
    console.print(
        f"{options.model}, {size[0]} by {size[1]} pixels, {len(module.net.blocks)} blocks, random weights; "
        f"{describe(options.device)}; "
        f"{options.rounds} rounds of {options.batches} batches of {options.batch_size} images"
    )
    panel = [HeatmapLogger()] if options.panel else []
    with tempfile.TemporaryDirectory() as folder:
        epochs = {
            "plain": Epoch(folder, options.device, []),
            "monitored": Epoch(folder, options.device, [*panel, LocalizationMonitor()]),
            "published": Epoch(folder, options.device, [PublishedMonitor(options.weight_gradients)]),
        }
        for epoch in epochs.values():
            epoch.run(module, warm_up)
        seconds: dict[str, list[float]] = {name: [] for name in epochs}
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for name, epoch in epochs.items():
                seconds[name].append(epoch.run(module, loader))
    console.print(summarize(seconds, images))
    iou, published_iou = epochs["monitored"].iou, epochs["published"].iou
    console.print(f"val/agcam/iou: {iou:.6f} monitored, {published_iou:.6f} published")
    if abs(iou - published_iou) > IOU_TOLERANCE:
        sys.exit(f"error: these differ by more than {IOU_TOLERANCE}: the epochs do not compare.")


def build(options: argparse.Namespace) -> ViTClassifier:
    """A classifier with random weights."""
    torch.manual_seed(0)
    return ViTClassifier(options.model, num_classes=NUM_CLASSES, pretrained=False, model_kwargs=model_sizes(options))


def load(batches: int, batch_size: int, size: tuple[int, int]) -> DataLoader[Any]:
    """A loader of random images."""
    return DataLoader(RandomScenes(batches * batch_size, size, NUM_CLASSES), batch_size, collate_fn=collate)


def summarize(seconds: dict[str, list[float]], images: int) -> Table:
    """The table: median, least and largest over the rounds."""
    table = Table("epoch")
    for column in ("times the plain epoch", "seconds per image"):
        table.add_column(column, justify="right")
    for name, found in seconds.items():
        ratios = [mine / plain for mine, plain in zip(found, seconds["plain"], strict=True)]
        table.add_row(name, spread(ratios, 2), spread([second / images for second in found], 4))
    return table


def spread(values: list[float], digits: int) -> str:
    """Median, least and largest."""
    middle, low, high = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def quieten() -> None:
    """Hide what Lightning says in every epoch."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    hints = (
        "The '.*_dataloader' does not have many workers",  # the images are in memory
        "`isinstance.treespec, LeafSpec.` is deprecated",  # inside lightning and torch
    )
    for hint in hints:
        warnings.filterwarnings("ignore", message=f".*{hint}.*")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time of a validation epoch, plain and watched.")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each kind")
    parser.add_argument("--batches", type=int, default=2, help="of an epoch")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time")
    add_options(parser)
    parser.add_argument(
        "--weight_gradients",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the published way computes the weights' gradients, as its authors' backward() does",
    )
    parser.add_argument("--panel", action=argparse.BooleanOptionalAction, default=True, help="with HeatmapLogger")
    return parser.parse_args()


if __name__ == "__main__":
    main()
