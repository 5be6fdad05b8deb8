"""Structures inside the net: other poolings, several attentions a block, and blocks that run again."""

import copy
from typing import Any

import torch
from structures import (
    ALL,
    CLASSES,
    CONTROLS,
    FEW,
    LAST_BLOCK,
    PIXELS,
    RULES,
    TOKENS,
    Pooled,
    Structure,
    headless,
    randomise,
    reference,
    token_net,
    vit,
    without,
)
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    VisionTransformer,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# ---------------------------------------------------------------------------------------------------------------------
# 10 to 12: poolings that are no fixed mean of tokens
# ---------------------------------------------------------------------------------------------------------------------


def flat_head(tokens: int) -> nn.Linear:
    """A classifier of all tokens, one after the other."""
    head = nn.Linear(48 * tokens, CLASSES)
    randomise(head, seed=3)
    return head


def max_net() -> nn.Module:
    """The head reads the greatest value of every channel."""
    return vit(global_pool="max")


def average_and_max_net() -> nn.Module:
    """The head reads the mean of both."""
    return vit(global_pool="avgmax")


def map_net() -> nn.Module:
    """A latent token of the head reads the patches."""
    return vit(global_pool="map", class_token=False)


POOLINGS = {
    "max pooling": Structure(
        max_net, reference=max_net, inner=lambda root: root, must=PIXELS | LAST_BLOCK | {"agcam", "libragrad"}
    ),
    "average and max pooling": Structure(
        average_and_max_net,
        reference=average_and_max_net,
        inner=lambda root: root,
        must=PIXELS | LAST_BLOCK,
        methods=FEW,
    ),
    "all tokens, one after the other": Structure(
        lambda: Pooled(token_net(), lambda x: x.flatten(1), flat_head(TOKENS)),
        reference=lambda: reference(token_net(), lambda _: torch.eye(TOKENS), flat_head(TOKENS)),
        must=PIXELS | LAST_BLOCK,
        refused=frozenset({"token_dropping"}),
    ),
    "all patches, one after the other": Structure(
        lambda: Pooled(token_net(), lambda x: x[:, 1:].flatten(1), flat_head(TOKENS - 1)),
        reference=lambda: reference(token_net(), lambda _: torch.eye(TOKENS)[1:], flat_head(TOKENS - 1)),
        must=PIXELS | LAST_BLOCK,
        refused=frozenset({"token_dropping"}),
        methods=FEW,
    ),
    "attention pooling": Structure(
        map_net, reference=map_net, must=PIXELS | LAST_BLOCK | {"agcam", "evidence", "libragrad", "legrad"}
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# 15: several attentions a block
# ---------------------------------------------------------------------------------------------------------------------


def parallel_net() -> nn.Module:
    """Blocks of two attentions side by side, then two MLPs; the norms of both are the same."""
    net = vit(block_fn=ParallelThingsBlock)
    for block in net.blocks:
        for pair in (block.attns, block.ffns):
            pair[1].norm.load_state_dict(pair[0].norm.state_dict())
    return net


def joined(parts: list[Tensor], dim: int) -> nn.Parameter:
    """Weights side by side."""
    return nn.Parameter(torch.cat(parts, dim).detach().clone())


def join(block: Any, pair: Any) -> None:
    """Fill a plain block of twice the heads and twice the hidden units."""
    attns, ffns = pair.attns, pair.ffns
    block.norm1.load_state_dict(attns[0].norm.state_dict())
    block.norm2.load_state_dict(ffns[0].norm.state_dict())
    block.attn = Attention(48, num_heads=6, attn_head_dim=16, qkv_bias=True)
    for kind in ("weight", "bias"):
        parts = [getattr(part.attn.qkv, kind).chunk(3) for part in attns]
        setattr(block.attn.qkv, kind, joined([part[i] for i in range(3) for part in parts], 0))
    block.attn.proj.weight = joined([part.attn.proj.weight for part in attns], 1)
    block.attn.proj.bias = nn.Parameter((attns[0].attn.proj.bias + attns[1].attn.proj.bias).detach())
    block.mlp = Mlp(48, 2 * 192)
    block.mlp.fc1.weight = joined([part.mlp.fc1.weight for part in ffns], 0)
    block.mlp.fc1.bias = joined([part.mlp.fc1.bias for part in ffns], 0)
    block.mlp.fc2.weight = joined([part.mlp.fc2.weight for part in ffns], 1)
    block.mlp.fc2.bias = nn.Parameter((ffns[0].mlp.fc2.bias + ffns[1].mlp.fc2.bias).detach())


def joined_net() -> nn.Module:
    """The equal of the parallel net, with one attention a block."""
    net, pairs = vit(), parallel_net()
    net.load_state_dict({k: v for k, v in pairs.state_dict().items() if not k.startswith("blocks.")}, strict=False)
    for block, pair in zip(net.blocks, pairs.blocks, strict=True):
        join(block, pair)
    return net.eval()


class AtOnce(Block):
    """For the oracles: attention and MLP read the same."""

    parallel = True

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        normed = self.norm1(x)
        return x + self.attn(normed) + self.mlp(normed)


def scaling_net() -> nn.Module:
    """Blocks whose attention and MLP share their first layer."""
    return vit(block_fn=ParallelScalingBlock)


def scaling_reference() -> nn.Module:
    """The same weights in separate layers."""
    net, fused = vit(block_fn=AtOnce), scaling_net()
    net.load_state_dict({k: v for k, v in fused.state_dict().items() if not k.startswith("blocks.")}, strict=False)
    for block, source in zip(net.blocks, fused.blocks, strict=True):
        block.norm1.load_state_dict(source.in_norm.state_dict())
        for kind in ("weight", "bias"):
            both = getattr(source.in_proj, kind).detach()
            setattr(block.mlp.fc1, kind, nn.Parameter(both[:192].clone()))
            setattr(block.attn.qkv, kind, nn.Parameter(both[192:].clone()))
        block.attn.proj.load_state_dict(source.attn_out_proj.state_dict())
        block.mlp.fc2.load_state_dict(source.mlp_out_proj.state_dict())
    return net.eval()


def differential_net() -> nn.Module:
    """Every block subtracts one attention from another."""
    return vit(block_fn=DiffParallelScalingBlock, class_token=False, reg_tokens=1, global_pool="avg")


# relevance and tokentm say which blocks they know: a sentence of their own
DIFFERENTIAL = ALL - PIXELS - CONTROLS - LAST_BLOCK - RULES - {
    "tokentm", "saliency:balanced", "token_dropping", "cam", "libragrad", "libragrad:fullgrad", "libragrad:input",
    "reciprocam:block"
}  # fmt: skip
SEVERAL = {
    "two attentions a block": Structure(
        parallel_net,
        equal=joined_net,
        must=PIXELS | CONTROLS | {"raw_attention", "raw_attention:first", "raw_attention:last", "rollout", "rollout:1"},
    ),
    "attention and MLP at once": Structure(
        scaling_net,
        reference=scaling_reference,
        inner=lambda root: root,
        must=without(*RULES, "cam", "tokentm", "legrad:class_token"),
    ),
    "differential attention": Structure(
        differential_net,
        inner=lambda root: root,
        must=PIXELS,
        refused=DIFFERENTIAL,
        free=CONTROLS
        | {"saliency:balanced", "libragrad", "libragrad:fullgrad", "libragrad:input", "reciprocam:block", "cam"},
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# 16: blocks that run again for the backward pass
# ---------------------------------------------------------------------------------------------------------------------


class Checkpointed(VisionTransformer):
    """A user's forward with activation checkpointing around every block."""

    reentrant = False

    def forward_features(self, x: Tensor, **_: Any) -> Tensor:
        x = self._pos_embed(self.patch_embed(x))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant)
        return self.norm(x)


class CheckpointedReentrant(Checkpointed):
    """The older kind."""

    reentrant = True


class CheckpointedBackbone(nn.Module):
    """Activation checkpointing around a whole backbone."""

    def __init__(self, net: Any, reentrant: bool) -> None:
        super().__init__()
        self.backbone, self.head = headless(net), copy.deepcopy(net.head)
        self.reentrant = reentrant
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        tokens = checkpoint(self.backbone.forward_features, images, use_reentrant=self.reentrant)
        return self.head(tokens[:, 0])


def timm_checkpointed() -> nn.Module:
    """timm's own way."""
    net = copy.deepcopy(token_net())
    net.set_grad_checkpointing(True)
    return net


NO_GRADIENTS = frozenset(
    {"raw_attention", "raw_attention:sigmoid", "raw_attention:last", "rollout", "attention_flow", "rise", "score_cam"}
    | {"token_dropping", "saliency"}
)
CHECKPOINTED = {
    "checkpointed blocks": Structure(
        lambda: vit(Checkpointed), equal=token_net, pixels=token_net, must=without(*RULES, "cam")
    ),
    "checkpointed blocks, reentrant": Structure(
        lambda: vit(CheckpointedReentrant), equal=token_net, pixels=token_net, must=NO_GRADIENTS
    ),
    "checkpointed by timm": Structure(
        timm_checkpointed, equal=token_net, pixels=token_net, must=without(*RULES, "cam"), methods=FEW
    ),
    "checkpointed backbone": Structure(
        lambda: CheckpointedBackbone(token_net(), False),
        equal=token_net,
        pixels=token_net,
        must=NO_GRADIENTS,
        methods=FEW,
    ),
    "checkpointed backbone, reentrant": Structure(
        lambda: CheckpointedBackbone(token_net(), True),
        equal=token_net,
        pixels=token_net,
        must=NO_GRADIENTS,
        methods=FEW,
    ),
}

BLOCKS = {**POOLINGS, **SEVERAL, **CHECKPOINTED}
