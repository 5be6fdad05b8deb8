"""The machine that a benchmark runs on, and the options that say how: what all benchmarks share."""

import argparse
import os
import sys

import torch
from rich.console import Console


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model's size and of the machine."""
    parser.add_argument("--model", default="vit_base_patch16_224", help="a timm Vision Transformer, random weights")
    parser.add_argument("--img_size", type=int, help="pixels, if other than the model's own")
    parser.add_argument("--depth", type=int, help="blocks, if other than the model's own")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU, if other than its own choice")


def prepare(options: argparse.Namespace) -> Console:
    """Set the threads, warn where other work would distort the times, and give the console to print on."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    busy, cores = os.getloadavg()[0], os.cpu_count() or 1
    if options.device == "cpu" and busy + torch.get_num_threads() > cores + 0.5:
        print(
            f"warning: other work keeps {busy:.1f} of {cores} cores busy. Torch's threads then wait for each other in "
            "every operation, which distorts the ratios; wait until it is done, or use --threads 1.",
            file=sys.stderr,
        )
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def describe(device: str) -> str:
    """The machine, in words."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}; torch {torch.__version__}"
    return f"CPU, {torch.get_num_threads()} threads; torch {torch.__version__}"


def model_sizes(options: argparse.Namespace) -> dict[str, int]:
    """The arguments of timm's constructor."""
    sizes = {"img_size": options.img_size, "depth": options.depth}
    return {name: size for name, size in sizes.items() if size is not None}
