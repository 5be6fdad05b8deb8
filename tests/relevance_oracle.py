"""Reference for relevance (Chefer, Gur & Wolf, CVPR 2021): slow, explicit, one image, every NxN matrix, four products.

Written from the rules. Nothing here uses hooks or the package under test. The net is evaluated layer by layer; every
layer hands back its output and a function that turns the relevance of the output into the relevance of its input.
The rules of products, sums and means are taken as input times gradient of R/Z, by autograd; the z+ rule as its four
products of positive and negative parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oracles import readout, readout_weights

Back = Callable[[Tensor], Tensor]
EPSILON = 1e-9


def guarded(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The authors' division: the denominator is moved by 1e-9, and where it is zero the result is zero."""
    moved = denominator + EPSILON
    moved = torch.where(moved == 0, torch.full_like(moved, EPSILON), moved)
    return torch.where(denominator == 0, torch.zeros_like(moved), numerator / moved)


# ---------------------------------------------------------------------------------------------------------------------
# The rules
# ---------------------------------------------------------------------------------------------------------------------


def input_times_gradient(function: Callable[..., Tensor], inputs: list[Tensor], relevance: Tensor) -> list[Tensor]:
    """R_i = x_i * d/dx_i sum(f(x) * S), with S = R / f(x) held constant."""
    with torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_(True) for x in inputs]
        z = function(*leaves)
        gradients = torch.autograd.grad(z, leaves, guarded(relevance, z.detach()))
    return [x.detach() * gradient for x, gradient in zip(inputs, gradients, strict=True)]


def z_plus(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """The alpha=1 rule of a Linear layer with weight [O, I] for x [..., I]; the bias is left out."""
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    z = x.clamp(min=0) @ positive.T + x.clamp(max=0) @ negative.T
    share = guarded(relevance, z)
    return x.clamp(min=0) * (share @ positive) + x.clamp(max=0) * (share @ negative)


def add_rule(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Shares by contribution, then scaled so that the totals stand as |sum a| : |sum b| and keep the sum of R."""
    share_a, share_b = input_times_gradient(torch.add, [a, b], relevance)
    size_a, size_b = share_a.sum().abs(), share_b.sum().abs()
    wanted_a = guarded(size_a, size_a + size_b) * relevance.sum()
    wanted_b = guarded(size_b, size_a + size_b) * relevance.sum()
    return share_a * guarded(wanted_a, share_a.sum()), share_b * guarded(wanted_b, share_b.sum())


# ---------------------------------------------------------------------------------------------------------------------
# The layers, each: output and the way back
# ---------------------------------------------------------------------------------------------------------------------


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Back]:
    """A Linear layer."""
    y = x @ weight.T if bias is None else x @ weight.T + bias
    return y, lambda relevance: z_plus(x.detach(), weight.detach(), relevance)


@dataclass
class Attention:
    """What one attention computed, and after the walk the relevance of its weights."""

    weights: Tensor  # [H, N, N], in the autograd graph
    relevance: Tensor | None = None  # [H, N, N]


def attention(attn: Any, normed: Tensor, bias: Tensor | None) -> tuple[Tensor, Back, Attention]:
    """Multi-head self-attention of [N, D]; `bias` [H, N, N] is added to the scores."""
    n, heads = normed.shape[0], attn.num_heads
    qkv_bias = attn.qkv.bias
    if getattr(attn, "q_bias", None) is not None:  # BEiT
        qkv_bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    joined, back_qkv = linear(normed, attn.qkv.weight, qkv_bias)
    q, k, v = joined.reshape(n, 3, heads, -1).permute(1, 2, 0, 3)  # each [H, N, d]
    q = getattr(attn, "q_norm", nn.Identity())(q)
    k = getattr(attn, "k_norm", nn.Identity())(k)
    dots = q @ k.transpose(1, 2)  # [H, N, N]
    scores = dots * attn.scale if bias is None else dots * attn.scale + bias
    weights = torch.softmax(scores, dim=-1)
    mixed = weights @ v  # [H, N, d]
    flat = getattr(attn, "norm", nn.Identity())(mixed.permute(1, 0, 2).reshape(n, -1))
    out, back_proj = linear(flat, attn.proj.weight, attn.proj.bias)
    state = Attention(weights)

    def back(relevance: Tensor) -> Tensor:
        of_mixed = back_proj(relevance).reshape(n, heads, -1).permute(1, 0, 2)
        of_weights, of_v = input_times_gradient(torch.matmul, [weights, v], of_mixed)
        state.relevance = of_weights / 2
        of_q, of_k = input_times_gradient(lambda a, b: a @ b.transpose(1, 2), [q, k], of_weights / 2)
        stacked = torch.stack([of_q / 2, of_k / 2, of_v / 2])  # [3, H, N, d]
        return back_qkv(stacked.permute(2, 0, 1, 3).reshape(n, -1))

    return out, back, state


def mlp(module: Any, x: Tensor) -> tuple[Tensor, Back]:
    """Linear, activation, (norm,) Linear; relevance passes through all but the Linear layers."""
    hidden, back_1 = linear(x, module.fc1.weight, module.fc1.bias)
    out, back_2 = linear(module.norm(module.act(hidden)), module.fc2.weight, module.fc2.bias)
    return out, lambda relevance: back_1(back_2(relevance))


def transformer_block(block: Any, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Back, Attention]:
    """x + attention, then + MLP; each branch may be scaled by a vector, through which relevance passes."""
    branch, back_attention, state = attention(block.attn, block.norm1(x), bias)
    branch = branch * _scale(block, 1)
    middle = x + branch
    update, back_mlp = mlp(block.mlp, block.norm2(middle))
    update = update * _scale(block, 2)

    def back(relevance: Tensor) -> Tensor:
        skip, through = add_rule(middle, update, relevance)
        relevance = skip + back_mlp(through)
        skip, through = add_rule(x, branch, relevance)
        return skip + back_attention(through)

    return middle + update, back, state


def _scale(block: Any, position: int) -> Tensor | float:
    """LayerScale of a branch, under timm's names (vit: ls1.gamma; beit: gamma_1)."""
    scale = getattr(getattr(block, f"ls{position}", None), "gamma", getattr(block, f"gamma_{position}", None))
    return 1.0 if scale is None else scale


def head(net: Any, tokens: Tensor) -> tuple[Tensor, Back]:
    """Final norm, pooling and classifier of the tokens [N, D]: the logits [C]."""
    normed, n = net.norm(tokens), tokens.shape[0]
    if hasattr(net, "readout"):
        weights = readout_weights(net, n)
        features = weights @ normed
        logits, back_head = linear(net.fc_norm(features).flatten(), net.head.weight, net.head.bias)

        def back_features(relevance: Tensor) -> Tensor:
            of_features = back_head(relevance).reshape(features.shape)
            return input_times_gradient(lambda x: weights @ x, [normed], of_features)[0]

        return logits, back_features
    if hasattr(net, "head_dist"):
        one, back_one = linear(normed[0], net.head.weight, net.head.bias)
        two, back_two = linear(normed[1], net.head_dist.weight, net.head_dist.bias)

        def back_distilled(relevance: Tensor) -> Tensor:
            parts = add_rule(one / 2, two / 2, relevance)
            result = torch.zeros_like(tokens)
            result[0], result[1] = back_one(parts[0]), back_two(parts[1])
            return result

        return (one + two) / 2, back_distilled
    if net.global_pool == "token":
        logits, back_head = linear(net.fc_norm(normed[0]), net.head.weight, net.head.bias)

        def back_token(relevance: Tensor) -> Tensor:
            result = torch.zeros_like(tokens)
            result[0] = back_head(relevance)
            return result

        return logits, back_token
    assert net.global_pool == "avg"
    patches = normed[net.num_prefix_tokens :]
    logits, back_head = linear(net.fc_norm(patches.mean(0)), net.head.weight, net.head.bias)

    def back_mean(relevance: Tensor) -> Tensor:
        of_patches = input_times_gradient(lambda x: x.mean(0), [patches], back_head(relevance))[0]
        return torch.cat([tokens.new_zeros(n - len(patches), tokens.shape[1]), of_patches])

    return logits, back_mean


# ---------------------------------------------------------------------------------------------------------------------
# The method
# ---------------------------------------------------------------------------------------------------------------------


def embed(net: Any, image: Tensor) -> Tensor:
    """The tokens [N, D] that enter the first block."""
    patches = net.patch_embed(image[None])
    if hasattr(net, "_pos_embed"):
        return net.norm_pre(net._pos_embed(patches))[0]
    tokens = torch.cat([net.cls_token, patches], dim=1)  # BEiT
    return (tokens if net.pos_embed is None else tokens + net.pos_embed)[0]


def score_bias(net: Any, block: Any) -> Tensor | None:
    """BEiT's relative position bias [H, N, N], its own or the shared one, for the scores of a block."""
    if getattr(net, "rel_pos_bias", None) is not None:
        return net.rel_pos_bias()
    if getattr(block.attn, "relative_position_bias_table", None) is not None:
        return block.attn._get_rel_pos_bias()[0]
    return None


def relevance(net: Any, image: Tensor, target: int, start_layer: int = 0) -> Tensor:
    """Transformer attribution of one class, on the patch grid [gh, gw]: a row of the product, less that of I.

    Where the head reads prefix tokens the row of I is zero at all patches. The net and the image have to be float64;
    the logits of the explicit forward are compared with the net's own.
    """
    assert not net.training
    assert image.dtype == torch.float64
    with torch.enable_grad():
        tokens = embed(net, image)
        layers = []
        for block in net.blocks:
            tokens, back, state = transformer_block(block, tokens, score_bias(net, block))
            layers.append((back, state))
        logits, back_head = head(net, tokens)
        gradients = torch.autograd.grad(logits[target], [state.weights for _, state in layers])
    with torch.no_grad():
        torch.testing.assert_close(logits.detach(), net(image[None])[0], rtol=1e-9, atol=1e-9)
        walked = back_head(nn.functional.one_hot(torch.tensor(target), len(logits)).double())
        for back, _ in reversed(layers):
            walked = back(walked)
        n = tokens.shape[0]
        product = torch.eye(n, dtype=torch.float64)
        for gradient, (_, state) in list(zip(gradients, layers, strict=True))[start_layer:]:
            assert state.relevance is not None
            mean = (gradient * state.relevance).clamp(min=0).mean(0)
            product = (torch.eye(n, dtype=torch.float64) + mean) @ product
    height, width = net.patch_embed.grid_size
    return readout(net, product - torch.eye(n))[net.num_prefix_tokens :].reshape(height, width)
