"""How many images per second a training loader of JPEG files gives: litcam's beside torchvision's.

python benchmarks/data_loading.py                                          # 2 loading processes, then none; minutes
python benchmarks/data_loading.py --workers 8 --images 4096 --rounds 15    # on a machine with more cores
python benchmarks/data_loading.py --images 64 --rounds 1                   # to try it out

The files are made in a temporary folder: 500 by 375 pixels of smooth shapes and grain, 50 to 100 kB each, about as
large as those of ImageNet. They stay in the page cache, so that no disk is measured. Compared are
- litcam: the training loader of FolderDataModule with its default augmentation, normalised as in the training, after
  the batch has left the loader; here on the CPU, in the main process;
- torchvision, Pillow: ImageFolder and transforms.v2 on Pillow images, each normalised in its loading process;
- torchvision, tensors: the same transforms on uint8 tensors.

All take a random crop of 8 to 100 % of the area and an aspect of 3/4 to 4/3, resize it to 224 by 224 pixels, mirror
one half of the images, change brightness, contrast and saturation of four in five by up to 20 %, in random order, and
give normalised float32 batches, shuffled. All resize with antialiasing, but not with the same filter: torchvision's is
bicubic both ways; litcam makes crops smaller by the mean over each pixel's area, and larger by bicubic interpolation
(those of which one side becomes smaller, by a quarter at most, and the other larger, by bilinear interpolation, with
little antialiasing).
litcam draws for each image from a seed of its own, so that a resumed run and any number of processes draw the same.
Without loading processes OpenCV uses all cores, Pillow one.

The loaders take turns in one process, round after round, in alternating order; a ratio is that of the same round, so
that a machine that slows down for a while slows all. The table shows medians and, in brackets, quartiles. A round is an
epoch of all images with workers that are already there; a first one warms up.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from machine import describe, prepare
from PIL import Image
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from litcam.data import FolderDataModule

WIDTH, HEIGHT = 500, 375
NUM_CLASSES = 4
TOLERANCE = 0.25  # of the means of normalised batches, which differ by what is drawn


@dataclass(frozen=True)
class Loader:
    """A loader, and what makes normalised float32 images [B, 3, H, W] of its batches."""

    batches: DataLoader[Any]
    finish: Callable[[Any], Tensor]

    def epoch(self) -> Iterator[Tensor]:
        """The images of every batch once."""
        return map(self.finish, self.batches)


def make_picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Shapes of every size, the larger the stronger, as photographs have them, and the grain of a sensor: [H, W, 3]."""
    picture = 120 + 11 * rng.standard_normal((height, width, 1), np.float32)
    for octave in range(1, 8):
        cells = 2**octave + 1
        noise = cv2.resize(
            rng.standard_normal((cells, cells, 3), np.float32), (width, height), None, 0, 0, cv2.INTER_CUBIC
        )
        grey = noise.mean(2, keepdims=True)  # of a photograph's colours most is brightness
        picture = picture + 140 * 2 ** (-0.75 * octave) * (1.4 * grey + 0.35 * noise)
    return picture.clip(0, 255).astype(np.uint8)


def make_files(root: Path, count: int) -> None:
    """``train/<class>/<number>.jpg``, a quarter of them upright."""
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (HEIGHT, WIDTH) if number // NUM_CLASSES % 4 else (WIDTH, HEIGHT)
        folder = root / "train" / f"class_{number % NUM_CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(make_picture(rng, height, width))
        picture.save(folder / f"{number}.jpg", quality=int(rng.integers(88, 95)))


def litcam_loader(root: Path, batch_size: int, workers: int) -> Loader:
    """litcam's."""
    datamodule = FolderDataModule(str(root), batch_size=batch_size, num_workers=workers)
    return Loader(datamodule.train_dataloader(), lambda batch: datamodule.normalize(batch)["image"])


def torchvision_loader(root: Path, batch_size: int, workers: int, tensors: bool) -> Loader:
    """torchvision's, with the parameters of litcam.data.transforms.default_train_transforms."""
    config = FolderDataModule(str(root)).data_config
    _, height, width = config["input_size"]
    jitter = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
    augment = [
        v2.RandomResizedCrop(
            (height, width),
            scale=(0.08, 1.0),
            ratio=(3 / 4, 4 / 3),
            interpolation=InterpolationMode(config["interpolation"]),
            antialias=True,
        ),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomApply([jitter], p=0.8),
    ]
    steps = [v2.PILToTensor(), *augment] if tensors else [*augment, v2.PILToTensor()]
    normalize = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(config["mean"], config["std"])]
    batches = DataLoader(
        ImageFolder(str(root / "train"), v2.Compose([*steps, *normalize])),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    return Loader(batches, lambda batch: batch[0])


def make_loaders(root: Path, batch_size: int, workers: int) -> dict[str, Loader]:
    """All that are compared, litcam's first."""
    return {
        "litcam": litcam_loader(root, batch_size, workers),
        "torchvision, Pillow": torchvision_loader(root, batch_size, workers, tensors=False),
        "torchvision, tensors": torchvision_loader(root, batch_size, workers, tensors=True),
    }


def check_alike(loaders: dict[str, Loader]) -> None:
    """End the run if the loaders give other shapes, types or colours; an epoch of each, which also warms up."""
    found = {}
    for name, loader in loaders.items():
        batches = list(loader.epoch())
        kinds = {(batch.dtype, batch.shape) for batch in batches}
        found[name] = kinds, torch.stack([batch.mean() for batch in batches]).mean(), len(batches)
    kinds, mean, length = found["litcam"]
    for name, (other_kinds, other_mean, other_length) in found.items():
        if kinds != other_kinds or length != other_length or abs(mean - other_mean) > TOLERANCE:
            sys.exit(f"error: the batches of litcam and {name} differ; their times would not compare.")


def measure(loaders: dict[str, Loader], rounds: int) -> dict[str, Tensor]:
    """Images per second of every loader in every round."""
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(rounds):
        for name in list(loaders)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            images = sum(len(batch) for batch in loaders[name].epoch())
            found[name].append(images / (time.perf_counter() - start))
    return {name: torch.tensor(rates) for name, rates in found.items()}


def quartiles(values: Tensor, digits: int) -> str:
    """The median, and the quartiles in brackets."""
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Measure and print."""
    options = parse()
    console = prepare(options)
    count = options.images // options.batch_size * options.batch_size
    if count < options.batch_size:
        sys.exit(f"error: {options.images} images are less than a batch; give --images {options.batch_size}.")
    table = Table("loader")
    columns: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), count)
        sizes = [path.stat().st_size / 1000 for path in Path(folder).rglob("*.jpg")]
        console.print(
            f"{count} files of {min(sizes):.0f} to {max(sizes):.0f} kB; batches of {options.batch_size}; "
            f"{describe('cpu')}; {options.rounds} rounds"
        )
        for workers in options.workers:
            print(f"measuring with {workers} loading processes", file=sys.stderr)
            loaders = make_loaders(Path(folder), options.batch_size, workers)
            check_alike(loaders)
            rates = measure(loaders, options.rounds)
            table.add_column(f"images/s, {workers} workers", justify="right")
            table.add_column("litcam / this", justify="right")
            columns.append({name: quartiles(rate, 0) for name, rate in rates.items()})
            columns.append({name: quartiles(rates["litcam"] / rate, 2) for name, rate in rates.items()})
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Images per second of training loaders of JPEG files.")
    parser.add_argument("--images", type=int, default=512, help="files, in whole batches")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each loader that are timed")
    parser.add_argument("--workers", nargs="+", type=int, default=[2, 0], help="loading processes; 0: none")
    parser.add_argument("--batch_size", type=int, default=64, help="images per batch")
    parser.add_argument("--threads", type=int, help="of torch on the CPU, if other than its own choice")
    parser.set_defaults(device="cpu")  # for prepare
    return parser.parse_args()


if __name__ == "__main__":
    main()
