"""What an explanation costs: its time in forwards of the model, and the memory that it adds to one.

python benchmarks/explainers.py                                            # vit_base_patch16_224, several minutes
python benchmarks/explainers.py --methods agcam published_agcam --repeats 15
python benchmarks/explainers.py --model vit_tiny_patch16_224 --img_size 64 --depth 4 --no-memory         # to try it out

Compared are litcam's explainers (those that take many forwards only if asked for) with AGCAM the published way
(benchmarks/published.py), which takes images one at a time: ``published_agcam`` computes what the authors' program
does, weight gradients among it, and ``published_agcam_lean`` leaves those out. Before anything is timed their maps are
checked against litcam's agcam.

Time: plain forwards (under inference mode, fused attention) and explanations take turns in one loop. A ratio is that of
neighbours in time, so that a machine that slows down for a while slows both; the table shows the median of the ratios
and, in brackets, their quartiles. An explanation holds its own forward: 1.00 would be free. Where other work shares the
cores, torch's threads wait for each other, most of all in small operations: then use ``--threads 1``.

Memory: the peak while the method runs for the first time, less the peak of a plain forward, in a fresh process each. On
the CPU that is VmHWM of /proc/self/status, set back through /proc/self/clear_refs (Linux only), with glibc told to hand
freed tensors back to the kernel at once; the method's code is loaded before, on a tiny net. On a GPU it is
torch.cuda.max_memory_allocated. It agrees with the allocations that torch.profiler counts to a few MiB.
"""

import argparse
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from machine import add_options, describe, model_sizes, prepare
from published import PublishedAGCAM
from rich.table import Table
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import litcam
import litcam.models  # registers the packaged model with timm
from litcam.errors import LitcamError
from litcam.explainers import parse_explainer
from litcam.vit.model import find_vit

PUBLISHED = {"published_agcam": True, "published_agcam_lean": False}  # the value: with weight gradients
# Take seconds, or hundreds or thousands of forwards: only if asked for.
SLOW = {"attention_flow", "rise", "score_cam", "token_dropping"}
TOLERANCE = 1e-4  # of the published maps, relative to the largest value of each
MIB = 2**20

Method = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """The model that is explained, as a fresh process can build it again."""

    model: str
    sizes: dict[str, Any]
    device: str

    def build(self) -> nn.Module:
        """The net with random weights, always the same ones."""
        torch.manual_seed(0)
        net: nn.Module = timm.create_model(self.model, pretrained=False, num_classes=1000, **self.sizes)
        return net.eval().to(self.device)


def make_batch(net: nn.Module, size: int) -> tuple[Tensor, Tensor]:
    """Random images [B, 3, H, W] and classes [B] for a net, on its device."""
    generator = torch.Generator().manual_seed(1)
    shape = getattr(find_vit(net).net.patch_embed, "img_size", None) or resolve_model_data_config(net)["input_size"][1:]
    device = next(net.parameters()).device
    images = torch.randn(size, 3, *shape, generator=generator)
    return images.to(device), torch.randint(net.num_classes, (size,), generator=generator).to(device)  # type: ignore[call-overload]


def make_method(name: str, net: nn.Module) -> Method:
    """A method of a net: from images and classes to maps."""
    if name in PUBLISHED:
        return PublishedAGCAM(net, weight_gradients=PUBLISHED[name])
    known, method_options = parse_explainer(name)
    explainer = litcam.create_explainer(known, net, **method_options)
    return lambda images, targets: explainer(images, targets).heatmaps


def plain_forward(net: nn.Module, images: Tensor) -> None:
    """What all is measured against."""
    with torch.inference_mode():
        net(images)


def published_error(net: nn.Module) -> float:
    """Largest difference of the published maps of two images from litcam's, relative to each map's largest value."""
    images, targets = make_batch(net, 2)
    expected = make_method("agcam", net)(images, targets)
    largest = expected.flatten(1).amax(1)
    differences = [
        (make_method(name, net)(images, targets) - expected).abs().flatten(1).amax(1) / largest for name in PUBLISHED
    ]
    return float(torch.stack(differences).max())


# Time


def measure_ratios(net: nn.Module, method: Method, batch_size: int, repeats: int) -> Tensor:
    """Time of the method over that of the plain forward just before it: [repeats]."""
    images, targets = make_batch(net, batch_size)

    def seconds(work: Callable[[], object]) -> float:
        _synchronize(images.device)
        start = time.perf_counter()
        work()
        _synchronize(images.device)
        return time.perf_counter() - start

    ratios = []
    for _ in range(1 + repeats):
        plain = seconds(lambda: plain_forward(net, images))
        ratios.append(seconds(lambda: method(images, targets)) / plain)
    return torch.tensor(ratios[1:])  # the first pair warms up


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Memory


def measure_memory(subject: Subject, name: str, batch_size: int) -> float | None:
    """Bytes that the method adds to the peak of a plain forward, measured in a process of its own; None if unknown."""
    if subject.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    # glibc would keep freed blocks of up to 32 MiB; with a fixed threshold they go back to the kernel when freed.
    os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(added_peak, subject, name, batch_size).result()


def added_peak(subject: Subject, name: str, batch_size: int) -> float:
    """The same, in this process."""
    device = torch.device(subject.device)
    tiny = timm.create_model("vit_mini_patch8_64", pretrained=False).eval().to(device)
    make_method(name, tiny)(*make_batch(tiny, batch_size))  # loads the method's code
    net = subject.build()
    images, targets = make_batch(net, batch_size)
    plain_forward(net, images)
    plain = peak_of(lambda: plain_forward(net, images), device)
    return peak_of(lambda: make_method(name, net)(images, targets), device) - plain


def peak_of(work: Callable[[], object], device: torch.device) -> int:
    """Bytes in use when most were, while ``work`` ran."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    work()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None  # Linux writes it for every process
    return int(found[1]) * 1024


def full_attention(net: nn.Module, batch_size: int) -> int:
    """Bytes of the N×N attention of all heads and blocks in float32."""
    vit = find_vit(net)
    height, width = make_batch(net, 1)[0].shape[-2:]
    rows, columns = vit.grid((height, width))
    tokens = vit.num_prefix_tokens + rows * columns
    heads = sum(int(block.attn.num_heads) for block in vit.blocks)
    return 4 * batch_size * heads * tokens**2


# The table


def main() -> None:
    """Measure and print."""
    options = parse()
    console = prepare(options)
    subject = Subject(options.model, model_sizes(options), options.device)
    net = subject.build()
    images, _ = make_batch(net, 1)
    console.print(
        f"{options.model}, {images.shape[-2]} by {images.shape[-1]} pixels, {len(find_vit(net).blocks)} blocks, "
        f"random weights; {describe(options.device)}; {options.repeats} pairs each"
    )
    methods = options.methods
    if set(methods) & set(PUBLISHED):
        try:
            error = published_error(net)
        except LitcamError as reason:
            console.print(f"Left out: {reason}")
            methods = [name for name in methods if name not in PUBLISHED]
        else:
            console.print(f"published maps against litcam's agcam: relative error {error:.1e}")
            if not error <= TOLERANCE:
                sys.exit(f"error: that is more than {TOLERANCE:.0e}; their times would not compare.")
    table = Table("method")
    for batch_size in options.batch_sizes:
        table.add_column(f"forwards, batch {batch_size}", justify="right")
    for batch_size in options.batch_sizes if options.memory else ():
        table.add_column(f"memory, batch {batch_size}", justify="right")
    for name in methods:
        table.add_row(name, *measure(subject, net, name, options))
    console.print(table)
    sizes = ", ".join(f"{full_attention(net, size) / MIB:.1f} MiB at batch {size}" for size in options.batch_sizes)
    console.print(f"N x N attention of all blocks and heads in float32 would be {sizes}.")


def measure(subject: Subject, net: nn.Module, name: str, options: argparse.Namespace) -> list[str]:
    """The cells of a method."""
    ratios, memories = [], []
    try:
        method = make_method(name, net)
        for batch_size in options.batch_sizes:
            print(f"measuring {name} at batch {batch_size}", file=sys.stderr)
            found = measure_ratios(net, method, batch_size, options.repeats)
            low, middle, high = found.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
            ratios.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
            added = measure_memory(subject, name, batch_size) if options.memory else None
            memories.append("unknown" if added is None else f"{added / MIB:.1f} MiB")
    except LitcamError as reason:  # not every method takes every model
        print(f"{name}: {reason}", file=sys.stderr)
        return ["not for this net"]
    return [*ratios, *memories] if options.memory else ratios


def parse() -> argparse.Namespace:
    """The command line."""
    names = sorted([*set(litcam.list_explainers()) - SLOW, "agcam:gradient=full", *PUBLISHED])
    parser = argparse.ArgumentParser(description="Time and memory of explanations, against a plain forward.")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=names,
        metavar="METHOD",
        help=f"an explainer, with options if wanted (reciprocam:kernel=dirac), or {' or '.join(PUBLISHED)}",
    )
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8], help="images at a time")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of plain forward and explanation")
    add_options(parser)
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="measure memory too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
