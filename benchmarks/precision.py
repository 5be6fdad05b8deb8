"""How far maps in single precision are from those in double precision, with real weights and photographs.

python benchmarks/precision.py --images photographs --methods relevance relevance:double=true agcam \
   --model vit_small_patch14_dinov2.lvd142m --img_size 224 --weights dinov2.safetensors

Weights are a state_dict as safetensors; a head that they leave out is random, of a fixed seed. Without them all of the
net is. Printed are, per method, the median and the largest of max|m32 - m64| / max|m64| over the images, and the
lowest correlation; the class is the one that the net predicts in single precision.
"""

import argparse
import copy
from pathlib import Path

import timm
import torch
from machine import add_options, describe, model_sizes, prepare
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from litcam.explainers import create_explainer, parse_explainer

ENDINGS = {".jpg", ".jpeg", ".png"}


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs, searched in depth")
    parser.add_argument("--count", type=int, default=16, help="images, evenly from the sorted folder")
    parser.add_argument("--weights", type=Path, help="a safetensors file")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=["relevance"])
    options = parser.parse_args()
    console = prepare(options)
    net = make_net(options)
    images = load_images(net, options).to(options.device)
    with torch.no_grad():
        targets = torch.cat([net(image[None]).argmax(1) for image in images])
    console.print(f"{options.model}, {len(images)} images; {describe(options.device)}")
    for method in options.methods:
        single, exact = (maps(method, each, images, targets) for each in (net, copy.deepcopy(net).double()))
        deviation = (single - exact).abs().amax(1) / exact.abs().amax(1)
        correlation = min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(single, exact, strict=True))
        console.print(
            f"{method}: median {deviation.median():.1e}, largest {deviation.max():.1e}, "
            f"lowest correlation {correlation:.6f}"
        )


def make_net(options: argparse.Namespace) -> nn.Module:
    """The net with its weights."""
    torch.manual_seed(0)
    net = timm.create_model(options.model, pretrained=False, num_classes=options.classes, **model_sizes(options))
    nn.init.normal_(net.get_classifier().weight, std=0.05)
    if options.weights is not None:
        unused = net.load_state_dict(load_file(options.weights), strict=False).unexpected_keys
        if unused:
            raise SystemExit(f"error: {options.weights} holds {unused[0]!r}, which {options.model} has not.")
    return net.eval().to(options.device)


def load_images(net: nn.Module, options: argparse.Namespace) -> Tensor:
    """Images [B, 3, H, W], cut and normalised as timm does for this net."""
    config = resolve_model_data_config(net)
    if options.img_size is not None:
        config["input_size"] = (3, options.img_size, options.img_size)
    transform = create_transform(**config)
    files = sorted(file for file in options.images.rglob("*") if file.suffix.lower() in ENDINGS)
    if not files:
        raise SystemExit(f"error: {options.images} holds no image.")
    chosen = files[:: max(1, len(files) // options.count)][: options.count]
    return torch.stack([transform(Image.open(file).convert("RGB")) for file in chosen])


def maps(method: str, net: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Maps [B, P] in double precision, of a net in any; one image at a time."""
    name, settings = parse_explainer(method)
    explainer, dtype = create_explainer(name, net, **settings), next(net.parameters()).dtype
    found = [
        explainer(image[None].to(dtype), target[None]).heatmaps for image, target in zip(images, targets, strict=True)
    ]
    return torch.cat(found).flatten(1).double()


if __name__ == "__main__":
    main()
