"""Structures around the net: how often it runs, on which images, and in which wrappers."""

import copy
from collections.abc import Callable
from typing import Any

import lightning
import torch
from structures import (
    ALL,
    CLASSES,
    CONTROLS,
    FEW,
    PIXELS,
    RULES,
    HuggingFace,
    Structure,
    headless,
    randomise,
    same,
    token_net,
    vit,
)
from torch import Tensor, nn
from torch.nn import functional as F


class Root(nn.Module):
    """A user's module: something is done to the images, and to the logits."""

    def __init__(self, net: Any, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor] = same) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        self.before, self.after = before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(self.before(images)))


# ---------------------------------------------------------------------------------------------------------------------
# 13: roots whose logits are not those of one run of one net on the images
# ---------------------------------------------------------------------------------------------------------------------


class FlipAverage(nn.Module):
    """Test-time augmentation by two forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.net = copy.deepcopy(token_net())

    def forward(self, images: Tensor) -> Tensor:
        return (self.net(images) + self.net(images.flip(-1))) / 2


class FoldedViews(nn.Module):
    """Test-time augmentation by one forward of twice the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = copy.deepcopy(token_net())

    def forward(self, images: Tensor) -> Tensor:
        return self.net(torch.cat([images, images.flip(-1)])).view(2, len(images), -1).mean(0)


class InterleavedViews(nn.Module):
    """Two views of an image one after the other in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = copy.deepcopy(token_net())

    def forward(self, images: Tensor) -> Tensor:
        views = torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1)
        return self.net(views).view(len(images), 2, -1).mean(1)


class Ensemble(nn.Module):
    """Two nets."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = copy.deepcopy(token_net()), randomise(copy.deepcopy(token_net()), seed=9)

    def forward(self, images: Tensor) -> Tensor:
        return self.one(images) + self.other(images)


class BesideConvolutions(nn.Module):
    """A branch that the net does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.net = copy.deepcopy(token_net())
        layers = [nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)]
        self.branch = randomise(nn.Sequential(*layers))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) + self.branch(images)


class Student(nn.Module):
    """A teacher that is there and does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher, self.student = randomise(copy.deepcopy(token_net()), seed=9), copy.deepcopy(token_net())

    def forward(self, images: Tensor) -> Tensor:
        return self.student(images)


REFUSED = ALL - PIXELS - CONTROLS - {"saliency:balanced", "cam"}  # cam says first that the net pools no patches
FREE = CONTROLS | {"saliency:balanced"}


def several(make: Callable[[], nn.Module], methods: frozenset[str] = ALL) -> Structure:
    """Methods that know no tokens go on; the others refuse."""
    return Structure(make, must=PIXELS, refused=REFUSED, free=FREE, methods=methods)


RUNS = {
    "mean with the flipped image": several(FlipAverage),
    "views in the batch": several(FoldedViews),
    "views in the batch, interleaved": several(InterleavedViews, FEW),
    "two nets": several(Ensemble),
    "beside convolutions": several(BesideConvolutions),
    "student beside a teacher": Structure(Student, equal=token_net, must=PIXELS),
}


# ---------------------------------------------------------------------------------------------------------------------
# 14: what a root does to its images
# ---------------------------------------------------------------------------------------------------------------------


def dynamic_net() -> nn.Module:
    """It takes every size."""
    return vit(dynamic_img_size=True)


def resize(height: int, width: int) -> Callable[[Tensor], Tensor]:
    """Bilinear."""
    return lambda images: F.interpolate(images, (height, width), mode="bilinear", antialias=False)


def flip(images: Tensor) -> Tensor:
    """Left to right."""
    return images.flip(-1)


def turn(images: Tensor) -> Tensor:
    """Counter-clockwise."""
    return images.rot90(1, (-2, -1))


def turn_back(images: Tensor) -> Tensor:
    """Clockwise."""
    return images.rot90(-1, (-2, -1))


def transpose(images: Tensor) -> Tensor:
    """Rows for columns."""
    return images.transpose(-1, -2)


def crop(images: Tensor) -> Tensor:
    """The middle 64 by 64 pixels."""
    return images[..., 16:80, 16:80]


def pad(images: Tensor) -> Tensor:
    """One patch of zeros on every side."""
    return F.pad(images, (16, 16, 16, 16))


def roll(images: Tensor) -> Tensor:
    """By one patch."""
    return images.roll(16, -1)


def normalise(images: Tensor) -> Tensor:
    """A root that takes pixels in other units."""
    return (images - 0.3) / 1.7


def standardise(images: Tensor) -> Tensor:
    """Every image by its own mean and deviation."""
    return (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), keepdim=True)


def gamma(images: Tensor) -> Tensor:
    """Smooth, and not linear."""
    return images.sign() * (images.abs() + 0.1) ** 0.7


def repeat(images: Tensor) -> Tensor:
    """Grey to colour."""
    return images.repeat(1, 3, 1, 1)


def swap(images: Tensor) -> Tensor:
    """Red for blue."""
    return images.flip(1)


def moved(before: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor], **changes: Any) -> Structure:
    """The map lies in the root's images, or is refused."""
    net = changes.pop("net", token_net)
    return Structure(
        lambda: Root(net(), before).eval(),
        equal=net,
        to_net=before,
        to_root=back,
        must=PIXELS,
        methods=FEW,
        **changes,
    )


def no_map(before: Callable[[Tensor], Tensor], **changes: Any) -> Structure:
    """No map of the net's images lies in the root's."""
    return Structure(
        lambda: Root(token_net(), before).eval(),
        must=PIXELS,
        free=CONTROLS,
        methods=FEW,
        **changes,
    )


def resized(before: Callable[[Tensor], Tensor], size: tuple[int, int], **changes: Any) -> Structure:
    """The grid of the net's images lies over the whole of the root's."""
    net = changes.pop("net", token_net)
    return Structure(
        changes.pop("make", lambda: Root(net(), before).eval()),
        equal=net,
        to_net=before,
        must=FEW - RULES - {"cam"},
        methods=FEW,
        images=(3, *size),
        **changes,
    )


def coloured(before: Callable[[Tensor], Tensor], channels: int = 3) -> Structure:
    """Places are left alone."""
    return Structure(
        lambda: Root(token_net(), before).eval(),
        equal=token_net,
        to_net=before,
        must=FEW - RULES - {"cam"},
        methods=FEW,
        images=(channels, 64, 64),
    )


def hugging_face() -> nn.Module:
    """A classifier of transformers."""
    return HuggingFace("ViTForImageClassification", "ViTConfig", intermediate_size=96).eval()


GEOMETRY = {
    "resized": resized(resize(64, 64), (128, 128)),
    "resized, of another shape": resized(resize(64, 64), (80, 112)),
    "resized, dynamic": resized(resize(96, 64), (64, 96), net=dynamic_net),
    "resized, transformers": resized(resize(64, 64), (128, 128), net=hugging_face),
    "flipped": moved(flip, flip),
    "turned": moved(turn, turn_back),
    "transposed": moved(transpose, transpose),
    "transposed, dynamic": moved(transpose, transpose, net=dynamic_net, images=(3, 64, 96)),
    "rolled": moved(roll, lambda x: x.roll(-1, -1)),
    "cropped": moved(crop, lambda x: F.pad(x, (1, 1, 1, 1)), images=(3, 96, 96)),
    "padded": moved(pad, lambda x: x[..., 1:-1, 1:-1], images=(3, 32, 32)),
    "cropped inside a patch": no_map(lambda x: x[..., 5:69, 3:67], images=(3, 72, 72)),
    "normalised": coloured(normalise),
    "standardised": coloured(standardise),
    "gamma": coloured(gamma),
    "grey": coloured(repeat, channels=1),
    "blue for red": coloured(swap),
}


# ---------------------------------------------------------------------------------------------------------------------
# 18: wrappers and heads
# ---------------------------------------------------------------------------------------------------------------------


class Module(lightning.LightningModule):
    """A user's training module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = copy.deepcopy(token_net())

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)


class Scaled(nn.Module):
    """Temperature scaling of the logits."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.net, self.temperature = copy.deepcopy(token_net()), nn.Parameter(torch.tensor(temperature))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) / self.temperature


def colder_net() -> nn.Module:
    """The temperature is in the head."""
    net = copy.deepcopy(token_net())
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter /= 1.6
    return net


class LowRank(nn.Module):
    """A layer and an update beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(layer.in_features, 4, bias=False), nn.Linear(4, layer.out_features, bias=False)
        randomise(self, seed=5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def low_rank_net() -> Any:
    """Every qkv has an update."""
    net = copy.deepcopy(token_net())
    for block in net.blocks:
        block.attn.qkv = LowRank(block.attn.qkv)
    return net


def merged_net() -> nn.Module:
    """The updates are in the weights."""
    net = low_rank_net()
    for block in net.blocks:
        update, layer = block.attn.qkv, block.attn.qkv.layer
        with torch.no_grad():
            layer.weight += update.up.weight @ update.down.weight
        block.attn.qkv = layer
    return net


class Cosine(nn.Module):
    """A cosine classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.randn(CLASSES, 48, generator=torch.Generator().manual_seed(6)))

    def forward(self, x: Tensor) -> Tensor:
        return 10 * F.normalize(x, dim=-1) @ F.normalize(self.classes, dim=-1).T


def own_head(head: nn.Module) -> nn.Module:
    """Inside timm's net, where its head is."""
    net = copy.deepcopy(token_net())
    net.head = head
    return net.eval()


def deep_head() -> nn.Module:
    """An MLP."""
    layers = [nn.LayerNorm(48), nn.Linear(48, 32), nn.GELU(), nn.Linear(32, CLASSES)]
    return randomise(nn.Sequential(*layers), seed=7)


def batch_norm_head() -> nn.Module:
    """The norm of the MAE authors' linear probe."""
    norm = nn.BatchNorm1d(48)
    generator = torch.Generator().manual_seed(8)
    norm.running_mean.copy_(torch.randn(48, generator=generator))
    norm.running_var.copy_(0.5 + torch.rand(48, generator=generator))
    return randomise(nn.Sequential(norm, nn.Linear(48, CLASSES)), seed=7)


def folded_batch_norm_head() -> nn.Module:
    """The norm is in the weights."""
    norm, layer = batch_norm_head()
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = nn.Linear(48, CLASSES)
    with torch.no_grad():
        folded.weight.copy_(layer.weight * scale)
        folded.bias.copy_(layer.bias + layer.weight @ (norm.bias - norm.running_mean * scale))
    return folded


class OutsideHead(nn.Module):
    """The head lies beside the backbone."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = headless(token_net()), head
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


class Normalise(nn.Module):
    """A first layer."""

    def forward(self, images: Tensor) -> Tensor:
        return normalise(images)


def wrapped(make: Callable[[], nn.Module], equal: Callable[[], nn.Module] = token_net, **changes: Any) -> Structure:
    """As if the wrapper were not there."""
    return Structure(make, equal=equal, **{"must": FEW - RULES, "methods": FEW, **changes})


WRAPPERS = {
    "data parallel": wrapped(lambda: nn.DataParallel(copy.deepcopy(token_net()))),
    "sequential": wrapped(
        lambda: nn.Sequential(Normalise(), copy.deepcopy(token_net())),
        to_net=normalise,
    ),
    "compiled": wrapped(
        lambda: torch.compile(copy.deepcopy(token_net()), backend="eager"),
        methods=frozenset({"agcam", "generic_attention", "raw_attention", "rollout", "gradcam", "relevance"}),
    ),
    "compiled inside": wrapped(lambda: Root(torch.compile(copy.deepcopy(token_net()), backend="eager"), same).eval()),
    "lightning": wrapped(lambda: Module().eval()),
    "copied": wrapped(lambda: copy.deepcopy(Module()).eval()),
    "temperature": wrapped(lambda: Scaled(1.6).eval(), colder_net),
    "low rank updates": wrapped(low_rank_net, merged_net),
    "cosine head outside": wrapped(lambda: OutsideHead(Cosine()), lambda: own_head(Cosine())),
    "deep head outside": wrapped(lambda: OutsideHead(deep_head()), lambda: own_head(deep_head())),
    "batch norm head": wrapped(
        lambda: own_head(batch_norm_head()),
        lambda: own_head(folded_batch_norm_head()),
        must=FEW - RULES - {"evidence", "libragrad"},  # its shift is no bias that they know
    ),
    "dropout before the head": wrapped(
        lambda: own_head(nn.Sequential(nn.Dropout(0.5), copy.deepcopy(token_net().head)))
    ),
}

ROOTS = {**RUNS, **GEOMETRY, **WRAPPERS}
