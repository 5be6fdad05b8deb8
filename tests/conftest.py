"""Small random models of every kind of readout, and nothing from the network."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before timm is imported
# Before torch is: nets so small are slower with several threads, which wait for each other; commands inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import timm
import torch
from torch import Tensor, nn

from cli_cases import train

SMALL = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}

NETS = {
    "class_token": ("vit_tiny_patch16_224", SMALL),
    "distilled": ("deit_tiny_distilled_patch16_224", SMALL),
    "registers": ("vit_tiny_patch16_224", {**SMALL, "reg_tokens": 4}),
    "layer_scale": ("vit_tiny_patch16_224", {**SMALL, "init_values": 0.5, "qk_norm": True}),
    "non_square": ("vit_tiny_patch16_224", {**SMALL, "img_size": (48, 80)}),
    "average_pooled": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg"}),
    "average_pooled_one_norm": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg", "fc_norm": False}),
}


def make_net(kind: str, seed: int = 0) -> nn.Module:
    """A random net in evaluation mode; its weights are large enough for attentions and gradients to be uneven."""
    name, arguments = NETS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = timm.create_model(name, pretrained=False, **arguments)
        for parameter in net.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.12)
    return net.eval()


def make_images(net: nn.Module, count: int = 3, seed: int = 1) -> Tensor:
    """Normalised random images of the size that the net takes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *net.patch_embed.img_size, generator=generator)


def count_images(part: nn.Module) -> list[int]:
    """How many images each forward of a part of a net gets from now on, litcam's own forwards too.

    A user's hook sees those only if it changes something; this one hands on a copy.
    """
    sizes: list[int] = []

    def count(part: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        sizes.append(len(output))
        return output.clone()

    part.register_forward_hook(count)
    return sizes


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest deviation as a share of the largest value."""
    assert expected.abs().max() > 0, "the oracle's map is empty: the comparison would prove nothing"
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=list(NETS))
def net(request: pytest.FixtureRequest) -> nn.Module:
    """A small random net of each kind in turn."""
    return make_net(request.param)


@pytest.fixture
def class_token_net() -> nn.Module:
    """A small random class-token net."""
    return make_net("class_token")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of three epochs, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    finished = train(folder, "--trainer.max_epochs=3")
    assert finished.returncode == 0, finished.stderr
    return folder / "digits" / "version_0", finished.stdout
