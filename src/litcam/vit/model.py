"""A Vision Transformer inside a user's module: where it is, what its head reads, what it takes. Knows no attention.

One subclass of :class:`ViT` per library: timm, torchvision and transformers name the same parts differently.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.models.eva import EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock
from timm.models.vision_transformer_relpos import ResPostRelPosBlock
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionVisionTransformer

from litcam.errors import InputError, UnsupportedModelError
from litcam.logits import is_regression

SUPPORTED = (
    "timm's vit, deit, deit3, dinov2, dinov3, clip, siglip, beit, eva and rope families, torchvision's "
    "VisionTransformer and the ViTs of Hugging Face transformers"
)

_NORM_NAMES = ("norm1", "in_norm", "ln_1", "layernorm_before")
_MLP_NORM_NAMES = ("norm2", "ln_2", "layernorm_after")
_POST_NORM_BLOCKS = (ResPostBlock, ResPostRelPosBlock, EvaBlockPostNorm)  # their norm1 follows the attention


@dataclass(frozen=True)
class ViT(ABC):
    """A Vision Transformer inside a module, as litcam sees it.

    Attributes:
        root: what is called with images and returns logits: the net itself, or a module that holds it.
        net: the Vision Transformer.
        others: further Vision Transformers in the root, which must not run.
        given: what the user gave, in which the root may be a part.
    """

    root: nn.Module
    net: Any
    others: tuple["ViT", ...] = field(default=(), repr=False, compare=False)
    given: nn.Module | None = field(default=None, repr=False, compare=False)

    @property
    def regression(self) -> bool:
        """Whether it was declared a regression."""
        return is_regression(self.root) or is_regression(self.given)

    @staticmethod
    @abstractmethod
    def recognises(module: nn.Module) -> bool:
        """Whether a module is a Vision Transformer of this library."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The Transformer blocks, first to last."""

    @property
    @abstractmethod
    def num_prefix_tokens(self) -> int:
        """Tokens before the patch tokens: class, distillation and register tokens."""

    @property
    @abstractmethod
    def embedding(self) -> nn.Module | None:
        """The module that makes patch tokens of the pixels."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of the only images that the net takes; None where it takes several sizes."""

    @abstractmethod
    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of (H, W) pixels."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the net's parameters."""
        parameters: Iterator[nn.Parameter] = self.net.parameters()
        return next(parameter.dtype for parameter in parameters if parameter.is_floating_point())

    @property
    def feature_norm(self) -> nn.Module | None:
        """The norm whose output the last block's attention reads; None where no module of the block is that."""
        block = self.blocks[-1]
        if isinstance(block, _POST_NORM_BLOCKS):
            return None
        return next((getattr(block, name) for name in _NORM_NAMES if hasattr(block, name)), None)

    def mlp_reader(self, block: nn.Module) -> nn.Module | None:
        """The module of a block that reads the tokens between its attention and its MLP; None where none does."""
        names = ("mlp",) if isinstance(block, _POST_NORM_BLOCKS) else _MLP_NORM_NAMES
        return next((getattr(block, name) for name in names if hasattr(block, name)), None)

    def check_size(self, images: Tensor) -> None:
        """Raise InputError unless images [..., H, W] are of a size that the net takes."""
        expected, size = self.image_size, tuple(images.shape[-2:])
        if expected is not None and size != expected:
            raise InputError(
                f"images are {size[0]} by {size[1]} pixels, but the net takes {expected[0]} by {expected[1]}: "
                "resize them, or create the net with another img_size."
            )


@dataclass(frozen=True)
class TimmViT(ViT):
    """A Vision Transformer of timm."""

    @staticmethod
    def recognises(module: nn.Module) -> bool:
        embeds = hasattr(module, "patch_embed") or hasattr(module, "embeds")  # NaFlexVit has the latter
        return embeds and hasattr(module, "blocks") and hasattr(module, "num_prefix_tokens")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return uncompiled_all(self.net.blocks)

    @property
    def num_prefix_tokens(self) -> int:
        return int(self.net.num_prefix_tokens)

    @property
    def embedding(self) -> nn.Module | None:
        return getattr(self.net, "patch_embed", None) or getattr(self.net, "embeds", None)

    @property
    def image_size(self) -> tuple[int, int] | None:
        embed = getattr(self.net, "patch_embed", None)
        size = getattr(embed, "img_size", None)
        return None if size is None or not getattr(embed, "strict_img_size", True) else (int(size[0]), int(size[1]))

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        embed = getattr(self.net, "patch_embed", None)
        if embed is None:
            height, width = self.net.embeds.patch_size
            rows, columns = image_size[0] // height, image_size[1] // width
        elif hasattr(embed, "dynamic_feat_size"):
            rows, columns = embed.dynamic_feat_size(image_size)
        else:
            rows, columns = embed.grid_size
        return int(rows), int(columns)


@dataclass(frozen=True)
class TorchvisionViT(ViT):
    """``torchvision.models.VisionTransformer``."""

    @staticmethod
    def recognises(module: nn.Module) -> bool:
        return isinstance(module, TorchvisionVisionTransformer)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return uncompiled_all(self.net.encoder.layers)

    @property
    def num_prefix_tokens(self) -> int:
        return 1

    @property
    def embedding(self) -> nn.Module | None:
        embedding: nn.Module = self.net.conv_proj
        return embedding

    @property
    def image_size(self) -> tuple[int, int] | None:
        return self.net.image_size, self.net.image_size

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        side = self.net.image_size // self.net.patch_size
        return side, side


@dataclass(frozen=True)
class TransformersViT(ViT):
    """A ViT, DeiT, DINOv2 or DINOv3 of Hugging Face transformers, in a module that returns logits."""

    @staticmethod
    def recognises(module: nn.Module) -> bool:
        embeddings = getattr(module, "embeddings", None)
        return all(hasattr(embeddings, name) for name in ("cls_token", "patch_embeddings")) and bool(_layers(module))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return _layers(self.net)

    @property
    def num_prefix_tokens(self) -> int:
        registers: int = getattr(self.net.config, "num_register_tokens", 0)
        return 1 + hasattr(self.net.embeddings, "distillation_token") + registers

    @property
    def embedding(self) -> nn.Module | None:
        embedding: nn.Module = self.net.embeddings.patch_embeddings
        return embedding

    @property
    def image_size(self) -> tuple[int, int] | None:
        return None  # the library checks it itself, where there is something to check

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        patch = self.net.config.patch_size
        height, width = (patch, patch) if isinstance(patch, int) else patch
        return image_size[0] // height, image_size[1] // width


def _layers(module: nn.Module) -> list[nn.Module]:
    """The blocks of a ViT of transformers, whose place has changed over its models and versions."""
    for owner in (module, getattr(module, "encoder", None), getattr(module, "model", None)):
        for name in ("layers", "layer"):
            layers = uncompiled(getattr(owner, name, None))
            if isinstance(layers, nn.ModuleList):
                return uncompiled_all(layers)
    return []


def uncompiled(module: Any) -> Any:
    """What torch.compile has wrapped; any other module is returned as it is."""
    return getattr(module, "_orig_mod", module)


def uncompiled_all(modules: Any) -> list[nn.Module]:
    """The modules of a list that may be compiled, as may each of them."""
    return [uncompiled(module) for module in uncompiled(modules)]


def find_vit(module: nn.Module) -> ViT:
    """The first Vision Transformer in a module, from the outside in.

    Raises:
        UnsupportedModelError: if there is none; the message says what is supported.
    """
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(f"net has to be a torch.nn.Module, not {type(module).__name__}.")
    root = uncompiled(module)
    found: list[ViT] = []
    inside: set[nn.Module] = set()
    for candidate in root.modules():
        # A compiled module's wrapper has all attributes of what it wraps, which comes next.
        kind = None if candidate in inside or uncompiled(candidate) is not candidate else _kind_of(candidate)
        if kind is not None:
            inside.update(candidate.modules())
            found.append(kind(root, candidate))
    _check_observable(root, found[0].net if found else root)
    if not found:
        raise UnsupportedModelError(
            f"{type(root).__name__} holds no Vision Transformer with global attention in every block; "
            f"supported are {SUPPORTED}."
        )
    return replace(found[0], others=tuple(found[1:]), given=module)


def _kind_of(module: nn.Module) -> type[ViT] | None:
    kinds: tuple[type[ViT], ...] = (TimmViT, TorchvisionViT, TransformersViT)
    return next((kind for kind in kinds if kind.recognises(module)), None)


def _check_observable(root: nn.Module, inside: nn.Module) -> None:
    """Raise UnsupportedModelError if a part of a module inside the root is scripted: compiled code shows nothing."""
    parts = set(inside.modules())
    for name, part in root.named_modules():
        if part in parts and isinstance(part, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{f'{name} of {type(root).__name__}' if name else 'The net'} is scripted or traced (torch.jit), and a "
                "scripted net cannot be observed; give the nn.Module that it was made from."
            )
