"""A Vision Transformer inside a user's module: where it is, what its head reads, what it takes. Knows no attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from litcam.errors import InputError, UnsupportedModelError

SUPPORTED = "timm's vit, deit, deit3, dinov2, dinov3, clip, siglip, beit, eva and rope families"


@dataclass(frozen=True)
class ViT:
    """A Vision Transformer inside a module, as litcam sees it.

    Attributes:
        root: what is called with images and returns logits: the net itself, or a module that holds it.
        net: the timm model, with ``blocks``, ``patch_embed`` and ``num_prefix_tokens``.
    """

    root: nn.Module
    net: Any

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patch tokens: class, distillation and register tokens."""
        return int(self.net.num_prefix_tokens)

    @property
    def pools_class_token(self) -> bool:
        """Whether the head reads prefix tokens alone, and not the patch tokens."""
        attention_pool = getattr(self.net, "attn_pool", None)
        return self.num_prefix_tokens > 0 and attention_pool is None and getattr(self.net, "global_pool", "") == "token"

    @property
    def readout(self) -> slice:
        """The tokens that the head reads: class token (and distillation token), or all patch tokens."""
        if not self.pools_class_token:
            return slice(self.num_prefix_tokens, None)
        return slice(0, 2 if hasattr(self.net, "dist_token") else 1)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of (H, W) pixels."""
        embed = self.net.patch_embed
        if hasattr(embed, "dynamic_feat_size"):
            rows, columns = embed.dynamic_feat_size(image_size)
        else:
            rows, columns = embed.grid_size
        return int(rows), int(columns)

    def check_images(self, images: Tensor) -> None:
        """Raise InputError unless images are finite floats [B, 3, H, W] of a size that the net takes."""
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images have to be a normalised float tensor [B, 3, H, W], not {got}.")
        self.check_size(images)
        finite = images.isfinite().flatten(1).all(1)
        if not finite.all():
            bad = (~finite).nonzero().flatten().tolist()
            raise InputError(f"images hold NaN or infinite pixels at batch index {', '.join(map(str, bad[:8]))}.")

    def check_size(self, images: Tensor) -> None:
        """Raise InputError unless images [..., H, W] are of a size that the net takes."""
        embed = self.net.patch_embed
        expected = getattr(embed, "img_size", None)
        size = tuple(images.shape[-2:])
        if expected is not None and getattr(embed, "strict_img_size", True) and size != tuple(expected):
            raise InputError(
                f"images are {size[0]} by {size[1]} pixels, but the net takes {expected[0]} by {expected[1]}: "
                "resize them, or create the net with another img_size."
            )


def find_vit(module: nn.Module) -> ViT:
    """The first Vision Transformer in a module, from the outside in.

    Raises:
        UnsupportedModelError: if there is none; the message says what is supported.
    """
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(f"net has to be a torch.nn.Module, not {type(module).__name__}.")
    root = getattr(module, "_orig_mod", module)  # what torch.compile(net) wraps
    for candidate in root.modules():
        if all(hasattr(candidate, name) for name in ("blocks", "patch_embed", "num_prefix_tokens")):
            return ViT(root, candidate)
    raise UnsupportedModelError(
        f"{type(root).__name__} holds no Vision Transformer with global attention in every block; "
        f"supported are {SUPPORTED}."
    )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode and without activation checkpointing; every flag is restored on every path."""
    training = {child: child.training for child in module.modules() if child.training}
    checkpointing = [child for child in module.modules() if getattr(child, "grad_checkpointing", False) is True]
    try:
        for child in training:
            child.training = False
        for child in checkpointing:
            child.grad_checkpointing = False  # type: ignore[assignment]
        yield
    finally:
        for child in training:
            child.training = True
        for child in checkpointing:
            child.grad_checkpointing = True  # type: ignore[assignment]


def check_attention(vit: ViT, calls: int) -> None:
    """Raise UnsupportedModelError unless every block made a self-attention call."""
    blocks = len(vit.net.blocks)
    if calls and calls % blocks == 0:
        return
    raise UnsupportedModelError(
        f"{type(vit.net).__name__} has {blocks} blocks but made {calls} self-attention calls through torch's "
        f"scaled_dot_product_attention, so it cannot be explained: supported are {SUPPORTED}, with fused attention on "
        "(timm.layers.set_fused_attn(True) before the net is created)."
    )
