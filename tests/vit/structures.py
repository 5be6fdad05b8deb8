"""A zoo of small models: each reads its tokens, or runs its net, in another way, and says what the right maps are.

The right map of a structure is that of an equal net, which gives the same logits by stock means, or of the oracles on a
reference net, whose head reads the same features; a feature is one weighted mean of tokens, and each counts equally.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SIZES: dict[str, Any] = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 3, "num_heads": 3}
TOKENS = 17  # the class token and 16 patches
CLASSES = 7
Maps = Callable[[Tensor], Tensor]


def same(x: Tensor) -> Tensor:
    """Nothing is changed."""
    return x


# ---------------------------------------------------------------------------------------------------------------------
# Methods, with options that spare time
# ---------------------------------------------------------------------------------------------------------------------

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "agcam": ("agcam", {}),
    "agcam:full": ("agcam", {"gradient": "full"}),
    "agcam:max": ("agcam", {"head_fusion": "max", "layer_fusion": "mean"}),
    "agcam:balanced": ("agcam", {"balanced": True}),
    "attention_flow": ("attention_flow", {}),
    "attention_gradcam": ("attention_gradcam", {}),
    "cam": ("cam", {}),
    "evidence": ("evidence", {}),
    "generic_attention": ("generic_attention", {}),
    "generic_attention:balanced": ("generic_attention", {"balanced": True}),
    "gradcam": ("gradcam", {}),
    "gradcam_plusplus": ("gradcam_plusplus", {}),
    "hirescam": ("hirescam", {}),
    "legrad": ("legrad", {}),
    "legrad:class_token": ("legrad", {"readout": "class_token", "layers": None}),
    "libragrad": ("libragrad", {}),
    "libragrad:fullgrad": ("libragrad", {"form": "fullgrad", "score": "logit"}),
    "libragrad:input": ("libragrad", {"form": "input_gradient"}),
    "raw_attention": ("raw_attention", {}),
    "raw_attention:sigmoid": ("raw_attention", {"normalize": "sigmoid"}),
    "raw_attention:first": ("raw_attention", {"layer": 0}),
    "raw_attention:last": ("raw_attention", {"layer": -1}),
    "reciprocam": ("reciprocam", {"batch_size": 5}),
    "reciprocam:block": ("reciprocam", {"feature": "block", "kernel": "dirac"}),
    "reciprocam:logit": ("reciprocam", {"score": "logit", "keep_class_token": False}),
    "relevance": ("relevance", {}),
    "relevance:1": ("relevance", {"start_layer": 1}),
    "rise": ("rise", {"num_masks": 12, "cells": 3, "batch_size": 5}),
    "rollout": ("rollout", {}),
    "rollout:1": ("rollout", {"start_layer": 1}),
    "saliency": ("saliency", {}),
    "saliency:balanced": ("saliency", {"balanced": True}),
    "saw": ("saw", {}),
    "score_cam": ("score_cam", {"batch_size": 20}),
    "token_dropping": ("token_dropping", {"batch_size": 5}),
    "tokentm": ("tokentm", {}),
    "captum": ("captum:IntegratedGradients", {"n_steps": 4}),
    "random": ("random", {}),
    "center": ("center", {}),
    "uniform": ("uniform", {}),
}
ALL = frozenset(METHODS)
PIXELS = frozenset({"saliency", "rise", "captum"})  # know nothing of tokens: right for every root
CONTROLS = frozenset({"random", "center", "uniform"})
ROWS = frozenset(  # ask which tokens the logits read
    {"raw_attention", "raw_attention:sigmoid", "raw_attention:first", "raw_attention:last", "rollout", "rollout:1"}
    | {"generic_attention", "generic_attention:balanced", "saw", "tokentm", "attention_gradcam", "attention_flow"}
    | {"agcam:full"}
)
LAST_BLOCK = frozenset(  # differentiate or repeat what comes after the input of the last attention
    {"gradcam", "gradcam_plusplus", "hirescam", "reciprocam", "reciprocam:logit", "score_cam"}
)
FEW = frozenset(  # one of each kind, where a structure changes nothing that a method sees
    {"agcam", "agcam:full", "attention_gradcam", "evidence", "generic_attention", "gradcam", "legrad", "libragrad"}
    | {"raw_attention", "raw_attention:last", "reciprocam", "relevance", "rollout", "tokentm", "token_dropping", "saw"}
    | {"cam", "saliency", "rise"}
)
TOKEN_GRADIENTS = frozenset({"agcam", "agcam:max"})
RULES = frozenset({"relevance", "relevance:1"})  # a rule for every layer: free to refuse what they do not know


def without(*methods: str) -> frozenset[str]:
    """All methods but these."""
    assert ALL.issuperset(methods)
    return ALL - set(methods)


@dataclass(frozen=True)
class Structure:
    """A model, and what tells its right maps.

    Attributes:
        make: the model.
        equal: a net with equal logits on the images that `to_net` makes of the root's, and equal maps.
        reference: where no stock net is equal, a timm net that the oracles understand, on the same images.
        to_net: what the root does to its images before its net sees them.
        to_root: lays a map of the net's images over the root's.
        inner: where maps of the last block's input are to be had by hooks: the timm net inside the root.
        pixels: a model with the same gradients at the pixels, where the root itself is no use.
        must: methods that have to give the right map; the others may refuse instead.
        refused: methods that have to refuse, all in the same sentence.
        free: methods whose map nothing here tells: of the right shape and finite, or refused.
        methods: that are tried.
        images: shape of the root's images.
        tolerance: largest deviation as a share of the map's maximum.
    """

    make: Callable[[], nn.Module]
    equal: Callable[[], nn.Module] | None = None
    reference: Callable[[], nn.Module] | None = None
    to_net: Maps = same
    to_root: Maps = same
    inner: Callable[[nn.Module], Any] | None = None
    pixels: Callable[[], nn.Module] | None = None
    must: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    free: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset(METHODS)
    images: tuple[int, int, int] = (3, 64, 64)
    tolerance: float = 2e-3


# ---------------------------------------------------------------------------------------------------------------------
# Stock nets of one set of weights
# ---------------------------------------------------------------------------------------------------------------------


def randomise(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough for attentions and gradients to be uneven; norms and biases that cannot be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(0.12 * noise)
            else:
                parameter.copy_((0.0 if "bias" in name else 1.0) + 0.2 * noise)
    return net.eval()


def vit(cls: type[VisionTransformer] = VisionTransformer, **options: Any) -> Any:
    """A timm net; the same seed gives nets that differ in their pooling alone the same weights."""
    return randomise(cls(**{**SIZES, "num_classes": CLASSES, **options}))


@cache
def token_net() -> Any:
    """Stock: the head reads the class token."""
    return vit(global_pool="token")


@cache
def average_net() -> Any:
    """Stock: the head reads the mean of the patches, which are normalised before."""
    return vit(global_pool="avg", fc_norm=False)


@cache
def average_norm_net() -> Any:
    """Stock: the mean of the patches is normalised."""
    return vit(global_pool="avg")


@cache
def average_registers_net() -> Any:
    """Stock: four registers, which the mean leaves out."""
    return vit(global_pool="avg", fc_norm=False, reg_tokens=4)


@cache
def distilled_net() -> Any:
    """Stock: the mean of two heads, on the class token and the distillation token."""
    return vit(VisionTransformerDistilled)


def headless(net: Any) -> Any:
    """A copy without its classifier, and the classifier."""
    backbone = copy.deepcopy(net)
    backbone.reset_classifier(0)
    return backbone


Weights = Callable[[int], Tensor]  # of every feature over so many tokens, [F, N]


class Readout(VisionTransformer):
    """A reference for the oracles: the head reads features, each a weighted mean of tokens, one after the other."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        features = self.fc_norm(self.readout(x.shape[1]).to(x) @ x).flatten(1)
        return features if pre_logits else self.head(features)

    def forward_of_blocks(self, images: Tensor) -> Tensor:
        found = self.get_intermediate_layers(images, n=self.taps, return_prefix_tokens=True, norm=True)
        return self.head(torch.cat([prefix[:, 0] for _, prefix in found], dim=-1))

    def forward(self, images: Tensor, **_: Any) -> Tensor:
        return self.forward_of_blocks(images) if hasattr(self, "taps") else super().forward(images)

    def head_of_blocks(self, results: list[Tensor]) -> Tensor:
        return self.head(torch.cat([self.norm(results[tap])[0] for tap in self.taps]))


def reference(source: Any, weights: Weights, head: nn.Module | None = None, **options: Any) -> Any:
    """A net with the blocks of `source` whose head reads the features of the weights."""
    net = vit(Readout, **options)
    net.load_state_dict({k: v for k, v in source.state_dict().items() if not k.startswith("head.")}, strict=False)
    net.head = source.head if head is None else head
    net.readout = weights
    return net.eval()


def class_row(count: int) -> Tensor:
    """Weights of the class token alone."""
    return torch.eye(count)[:1]


def patch_row(count: int) -> Tensor:
    """Weights of the mean of the patches."""
    return (1 - class_row(count)) / (count - 1)


def class_and_patch_rows(count: int) -> Tensor:
    """Weights of both, as two features."""
    return torch.cat([class_row(count), patch_row(count)])


def wide_head(features: int) -> nn.Linear:
    """A classifier of several features, one after the other."""
    head = nn.Linear(48 * features, CLASSES)
    randomise(head, seed=3)
    return head


# ---------------------------------------------------------------------------------------------------------------------
# 1 to 3: the stock readouts in other hands
# ---------------------------------------------------------------------------------------------------------------------


class MaeFineTuned(VisionTransformer):
    """A subclass with a flag in place of timm's word, which reads token 0."""

    def __init__(self, **options: Any) -> None:
        super().__init__(global_pool="token", **options)
        self.global_pool: Any = False

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x[:, 0] if pre_logits else self.head(x[:, 0])


class MaeOfOldTimm(VisionTransformer):
    """As the class was written for timm 0.3: the features are pooled before the head."""

    def __init__(self, average: bool, **options: Any) -> None:
        super().__init__(**options)
        self.global_pool: Any = average
        if average:
            self.fc_norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
            del self.norm

    def forward_features(self, x: Tensor, **_: Any) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.pos_drop(x + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        if self.global_pool:
            return self.fc_norm(x[:, 1:].mean(dim=1))
        return self.norm(x)[:, 0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self.head(x)


def mae(cls: type[VisionTransformer], source: Any, **options: Any) -> nn.Module:
    """A subclass with the weights of a stock net."""
    net = vit(cls, **options)
    net.load_state_dict(source.state_dict())
    return net


class Pooled(nn.Module):
    """A user's classifier on a function of the tokens that a net gives."""

    def __init__(self, net: Any, pool: Callable[[Tensor], Tensor], head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = headless(net)
        self.head = copy.deepcopy(net.head) if head is None else head
        self.pool = pool
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.backbone.forward_features(images)))


class PooledInside(VisionTransformer):
    """A timm subclass whose head pools as it likes."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.own_pool(x)
        return x if pre_logits else self.head(x)


def inside(source: Any, pool: Callable[[Tensor], Tensor], head: nn.Module | None = None) -> nn.Module:
    """A stock net whose forward_head was overridden."""
    net = vit(PooledInside, global_pool=source.global_pool, fc_norm=False)
    net.load_state_dict(source.state_dict())
    net.own_pool = pool
    if head is not None:
        net.head = head
    return net.eval()


READOUTS = {
    "mae": Structure(lambda: mae(MaeFineTuned, token_net()), equal=token_net, must=without(*RULES, "cam")),
    "mae, old timm": Structure(
        lambda: mae(MaeOfOldTimm, token_net(), average=False), equal=token_net, must=without(*RULES, "cam")
    ),
    "mae, old timm, average": Structure(
        lambda: mae(MaeOfOldTimm, average_norm_net(), average=True),
        equal=average_norm_net,
        must=without(*RULES, "cam"),
        methods=FEW,
    ),
    "patch mean of a token net": Structure(
        lambda: Pooled(token_net(), lambda x: x[:, 1:].mean(1)), equal=average_net, must=without(*RULES, "cam")
    ),
    "patch mean inside": Structure(
        lambda: inside(token_net(), lambda x: x[:, 1:].mean(1)),
        equal=average_net,
        must=without(*RULES, "cam"),
        methods=FEW,
    ),
    "patch mean beside registers": Structure(
        lambda: Pooled(vit(reg_tokens=4), lambda x: x[:, 5:].mean(1)),
        equal=average_registers_net,
        must=without(*RULES, "cam"),
    ),
    "class token of an average net": Structure(
        lambda: Pooled(average_net(), lambda x: x[:, 0]), equal=token_net, must=without(*RULES, "cam")
    ),
    "class token inside an average net": Structure(
        lambda: inside(average_net(), lambda x: x[:, 0]),
        equal=token_net,
        must=without(*RULES, "cam"),
        methods=FEW,
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# 4 to 9: readouts that no stock net has
# ---------------------------------------------------------------------------------------------------------------------

ORACLED = ROWS | LAST_BLOCK | TOKEN_GRADIENTS | PIXELS | {"legrad", "token_dropping"}


@cache
def both() -> tuple[Any, nn.Module]:
    """A net, and a head on the class token beside the mean of the patches."""
    return token_net(), wide_head(2)


def class_and_mean(x: Tensor) -> Tensor:
    """The class token beside the mean of the patches."""
    return torch.cat([x[:, 0], x[:, 1:].mean(1)], dim=-1)


class HuggingFace(nn.Module):
    """A user's module around a classifier of transformers."""

    def __init__(self, model: str, config: str, **options: Any) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 64}
        arguments = {**sizes, "patch_size": 16, "num_labels": CLASSES, **options}
        self.net = getattr(transformers, model)(getattr(transformers, config)(**arguments))
        randomise(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(pixel_values=images).logits


@cache
def dinov2() -> Any:
    """A family whose head reads the class token beside the mean of the patches."""
    return HuggingFace("Dinov2ForImageClassification", "Dinov2Config", mlp_ratio=4)


def dinov2_reference() -> nn.Module:
    """The same weights in a timm net."""
    source = dict(dinov2().net.named_parameters())
    copied = {"cls_token": "dinov2.embeddings.cls_token", "pos_embed": "dinov2.embeddings.position_embeddings"}
    pairs = {"patch_embed.proj": "dinov2.embeddings.patch_embeddings.projection", "norm": "dinov2.layernorm"}
    for i in range(3):
        theirs, ours = f"dinov2.encoder.layer.{i}", f"blocks.{i}"
        pairs |= {f"{ours}.{name}": f"{theirs}.{name}" for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")}
        pairs[f"{ours}.attn.proj"] = f"{theirs}.attention.o_proj"
        copied |= {f"{ours}.ls{j}.gamma": f"{theirs}.layer_scale{j}.lambda1" for j in (1, 2)}
    copied |= {f"{a}.{kind}": f"{b}.{kind}" for a, b in pairs.items() for kind in ("weight", "bias")}
    state = {ours: source[theirs] for ours, theirs in copied.items()}
    for i in range(3):
        for kind in ("weight", "bias"):
            parts = [source[f"dinov2.encoder.layer.{i}.attention.{x}_proj.{kind}"] for x in "qkv"]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    net = vit(Readout, init_values=1.0)
    missing = net.load_state_dict(state, strict=False)
    assert {name.split(".")[0] for name in missing.missing_keys} == {"head"}
    net.head = dinov2().net.classifier
    net.readout = class_and_patch_rows
    return net.eval()


def position_scores() -> Tensor:
    """What was learned of the positions."""
    return 2 * torch.randn(TOKENS, generator=torch.Generator().manual_seed(4))


class Weighted(nn.Module):
    """A head on the mean of the tokens under learned weights of the positions."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.backbone = headless(net)
        self.head = copy.deepcopy(net.head)
        self.positions = nn.Parameter(position_scores())
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.backbone.forward_features(images)
        return self.head((self.positions.softmax(0)[:, None] * tokens).sum(1))


class TwoBlocks(nn.Module):
    """A linear probe on the class tokens of two blocks."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.backbone = headless(net)
        self.head = wide_head(2)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        found = self.backbone.get_intermediate_layers(images, n=[0, 2], return_prefix_tokens=True, norm=True)
        return self.head(torch.cat([prefix[:, 0] for _, prefix in found], dim=-1))


def two_blocks(net: Any) -> nn.Module:
    """The reference of that probe."""
    found = reference(net, lambda n: class_row(n).expand(2, -1), wide_head(2))
    found.taps = [0, 2]
    return found


READOUTS |= {
    "mean of all tokens": Structure(
        lambda: vit(global_pool="avg", pool_include_prefix=True),
        reference=lambda: reference(
            average_norm_net(), lambda n: torch.full((1, n), 1 / n), global_pool="avg", fc_norm=True
        ),
        must=ORACLED,
    ),
    "class token beside patch mean, dinov2": Structure(dinov2, reference=dinov2_reference, must=ORACLED),
    "class token beside patch mean": Structure(
        lambda: Pooled(token_net(), class_and_mean, both()[1]),
        reference=lambda: reference(token_net(), class_and_patch_rows, both()[1]),
        must=ORACLED,
    ),
    "class token beside patch mean, inside": Structure(
        lambda: inside(token_net(), class_and_mean, both()[1]),
        reference=lambda: reference(token_net(), class_and_patch_rows, both()[1]),
        must=ORACLED,
        methods=FEW,
    ),
    "three quarters class token": Structure(
        lambda: Pooled(token_net(), lambda x: 0.75 * x[:, 0] + 0.25 * x[:, 1:].mean(1)),
        reference=lambda: reference(token_net(), lambda n: 0.75 * class_row(n) + 0.25 * patch_row(n)),
        must=ORACLED,
    ),
    "distilled": Structure(
        lambda: copy.deepcopy(distilled_net()), reference=distilled_net, must=without("cam", *CONTROLS)
    ),
    "class tokens of two blocks": Structure(
        lambda: TwoBlocks(token_net()),
        reference=lambda: two_blocks(token_net()),
        inner=lambda root: root.backbone,
        must=PIXELS,
    ),
    "learned weights of positions": Structure(
        lambda: Weighted(token_net()),
        reference=lambda: reference(token_net(), lambda n: position_scores().softmax(0)[None]),
        must=ORACLED - {"token_dropping"},
        refused=frozenset({"token_dropping"}),
    ),
}
