"""What it costs to see and prove, on every call, what a model does: each check in shares of a plain forward.

python benchmarks/door.py                                                # vit_base_patch16_224, batch 8, a few minutes
python benchmarks/door.py --model vit_tiny_patch16_224 --batch_size 2 --repeats 5 --threads 1           # to try it out

``readout`` is the proof that the logits are made of the last block's tokens, and of which; ``tail`` the first half of
it; ``place`` the proof that the patches lie on the image, of a net that gets the images as they are: the first time,
and afterwards; ``recording`` what the hooks of a recorded forward add to it; ``hooks`` what keeps the user's hooks
quiet. Plain forwards (under inference mode) and checks take turns in one loop; the table shows the median of the ratios
and, in brackets, their quartiles.
"""

import argparse
import time
from collections.abc import Callable

import timm
import torch
from machine import add_options, describe, model_sizes, prepare
from rich.table import Table
from torch import Tensor, nn

from litcam.vit.hooks import quiet_hooks
from litcam.vit.model import find_vit
from litcam.vit.place import prove_place
from litcam.vit.readout import check_tail, observe_readout
from litcam.vit.recorder import record


def checks_of(net: nn.Module, images: Tensor) -> dict[str, Callable[[], object]]:
    """Each check of a recorded forward, as often as one likes."""
    vit = find_vit(net)
    trace = record(vit, images, {})
    tokens, size = trace.last_output, (images.shape[-2], images.shape[-1])

    def place() -> object:
        return prove_place(vit, net, images, size, True, tokens.shape[1])

    def place_anew() -> object:  # as where the module changes its images: nothing is remembered
        return prove_place(vit, net, images, size, False, tokens.shape[1])

    def hooks() -> None:
        with quiet_hooks(net):
            pass

    def tail() -> None:
        with torch.no_grad():
            check_tail(vit, net, images, tokens, trace.agrees)

    return {
        "readout": lambda: observe_readout(vit, net, images, tokens, trace.agrees),
        "tail": tail,
        "place, the first time": place_anew,
        "place, afterwards": place,
        "hooks": hooks,
    }


def measure(net: nn.Module, images: Tensor, repeats: int) -> dict[str, Tensor]:
    """Time of each check over that of the plain forward just before it: [repeats] each."""

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        if images.device.type == "cuda":
            torch.cuda.synchronize(images.device)
        return time.perf_counter() - start

    @torch.inference_mode()
    def forward() -> object:
        return net(images)

    checks = checks_of(net, images)
    ratios: dict[str, list[float]] = {name: [] for name in [*checks, "recording"]}
    for _ in range(1 + repeats):
        for name, check in checks.items():
            ratios[name].append(1 / seconds(forward) * seconds(check))
        ratios["recording"].append(1 / seconds(forward) * seconds(lambda: record(find_vit(net), images, {})) - 1)
    return {name: torch.tensor(found[1:]) for name, found in ratios.items()}  # the first round warms up


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    console = prepare(options)
    torch.manual_seed(0)
    net = timm.create_model(options.model, pretrained=False, **model_sizes(options)).eval().to(options.device)
    size = net.patch_embed.img_size
    images = torch.randn(options.batch_size, 3, *size, generator=torch.Generator().manual_seed(1)).to(options.device)
    console.print(
        f"{options.model}, {size[0]} by {size[1]} pixels, batch {options.batch_size}, random weights; "
        f"{describe(options.device)}; {options.repeats} pairs each"
    )
    table = Table("check")
    table.add_column("of a forward", justify="right")
    for name, found in measure(net, images, options.repeats).items():
        low, middle, high = (100 * found.quantile(torch.tensor([0.25, 0.5, 0.75]))).tolist()
        table.add_row(name, f"{middle:.2f} % ({low:.2f} to {high:.2f})")
    console.print(table)


if __name__ == "__main__":
    main()
