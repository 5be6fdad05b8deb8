"""References for evidence, balanced gradients, LeGrad, TokenTM and token dropping, written from their definitions.

Slow and explicit: one image, full N×N matrices, every layer by hand; in the precision of the net. Nothing of the
package under test is used. E_l is the token stream after block l, E~_l the one between its attention and its MLP.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from oracles import NoMap, Trace, assert_faithful, is_parallel, readout_weights
from oracles import readout as read_row

Norm = Callable[[Any, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# Layers by hand: ordinary, and with the denominators and gates held constant
# ---------------------------------------------------------------------------------------------------------------------


def norm(layer: Any, x: Tensor, constant: bool) -> Tensor:
    """LayerNorm, or Identity."""
    if isinstance(layer, nn.Identity):
        return x
    assert isinstance(layer, nn.LayerNorm)
    deviation = (x.var(-1, correction=0, keepdim=True) + layer.eps).sqrt()
    if constant:
        deviation = deviation.detach()
    return (x - x.mean(-1, keepdim=True)) / deviation * layer.weight + layer.bias


def mlp(layer: Any, x: Tensor, constant: bool) -> Tensor:
    """Linear, GELU, Linear."""
    hidden = x @ layer.fc1.weight.T + layer.fc1.bias
    gate = 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return (hidden * (gate.detach() if constant else gate)) @ layer.fc2.weight.T + layer.fc2.bias


def scaled(layer: Any, x: Tensor) -> Tensor:
    """Layer scale, or Identity."""
    return x if isinstance(layer, nn.Identity) else x * layer.gamma


def logits_of(net: Any, results: list[Tensor], constant: bool, pooled: Tensor | None = None) -> Tensor:
    """Norm and head of the tokens [N, D] that leave every block; or of a token [D] in place of all tokens."""
    if pooled is not None:
        results = [pooled.expand(len(results[-1]), -1)]
    return head_of(net, features_of(net, results, constant), constant)


def features_of(
    net: Any, results: list[Tensor], constant: bool, shift: Tensor | float = 0.0, units: Tensor | float = 1.0
) -> Tensor:
    """What the head reads, [F, D]: weighted means of the normed tokens, of the blocks that a net names as `taps`.

    `shift` is added to the normed tokens; `units` multiply the bias that an attention pool adds to each of them.
    """
    normed = norm(net.norm, results[-1], constant) + shift
    if net.global_pool in ("max", "avgmax"):
        return net.pool(normed[None])
    if net.global_pool == "map":
        return attention_pool(net.attn_pool, normed, constant, units)
    weights = readout_weights(net, len(normed))
    if not hasattr(net, "taps"):
        return weights @ normed
    tokens = [norm(net.norm, results[tap], constant) + shift for tap in net.taps]
    return torch.stack([row @ x for row, x in zip(weights, tokens, strict=True)])


def attention_pool(pool: Any, x: Tensor, constant: bool, units: Tensor | float) -> Tensor:
    """One latent token reads the others, then an MLP: [1, D]."""
    heads, width = pool.num_heads, pool.head_dim
    q = (pool.latent[0] @ pool.q.weight.T + pool.q.bias).reshape(-1, heads, width).transpose(0, 1)
    k, v = (x @ pool.kv.weight.T + units * pool.kv.bias).reshape(len(x), 2, heads, width).permute(1, 2, 0, 3)
    weights = torch.softmax(q @ k.transpose(1, 2) * width**-0.5, -1)
    mixed = ((weights.detach() if constant else weights) @ v).transpose(0, 1).flatten(1)
    out = mixed @ pool.proj.weight.T + pool.proj.bias
    return out + mlp(pool.mlp, norm(pool.norm, out, constant), constant)


def head_of(net: Any, features: Tensor, constant: bool) -> Tensor:
    """The classifier of the features [F, D]: one head for all of them, or the two of a distilled model."""
    features = norm(net.fc_norm, features, constant)
    if not hasattr(net, "head_dist"):
        return features.flatten() @ net.head.weight.T + net.head.bias
    outputs = [x @ head.weight.T + head.bias for x, head in zip(features, [net.head, net.head_dist], strict=True)]
    return torch.stack(outputs).mean(0)


@dataclass
class Steps:
    """An explicit forward of one image."""

    inputs: list[Tensor] = field(default_factory=list)  # [N, D], E_{l-1}
    normed: list[Tensor] = field(default_factory=list)  # [N, D], what the attention reads
    scores: list[Tensor] = field(default_factory=list)  # [H, N, N], S
    middles: list[Tensor] = field(default_factory=list)  # [N, D], E~_l
    results: list[Tensor] = field(default_factory=list)  # [N, D], E_l
    weights: list[Tensor] = field(default_factory=list)  # [H, N, N], A
    values: list[Tensor] = field(default_factory=list)  # [H, N, d]
    outputs: list[Tensor] = field(default_factory=list)  # [H, N, d], A·v
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def forward(
    net: Any,
    image: Tensor,
    constant: bool = False,
    attention: Literal["full", "constant weights", "weights alone", "cut"] = "full",
    cut_blocks: bool = False,
    left_out: int | None = None,
) -> Steps:
    """Run the net by hand.

    Args:
        net: a timm VisionTransformer of plain blocks.
        image: [3, H, W]; where it requires gradients they reach it, else the tokens of the first block are a leaf.
        constant: hold the standard deviation of norms and the gate of GELU constant.
        attention: gradients through q, k and v; through v, with the weights a leaf; with v cut too; or with the
            attention's output a leaf.
        cut_blocks: the input of every block is a leaf too.
        left_out: a patch that is taken out after the position embedding.
    """
    steps = Steps()
    tokens = net.norm_pre(net._pos_embed(net.patch_embed(image[None])))[0]
    if left_out is not None:
        place = net.num_prefix_tokens + left_out
        tokens = torch.cat([tokens[:place], tokens[place + 1 :]])
    if not image.requires_grad:
        tokens = tokens.detach().requires_grad_()
    for block in net.blocks:
        if cut_blocks:
            tokens = tokens.detach().requires_grad_()
        steps.inputs.append(tokens)
        attn, n = block.attn, len(tokens)
        normed = norm(block.norm1, tokens, constant)
        joined = normed @ attn.qkv.weight.T + attn.qkv.bias
        q, k, v = joined.reshape(n, 3, attn.num_heads, -1).permute(1, 2, 0, 3)  # [H, N, d] each
        q, k = norm(attn.q_norm, q, constant), norm(attn.k_norm, k, constant)
        scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        weights = torch.softmax(scores, -1)
        if attention in ("constant weights", "weights alone"):
            weights = weights.detach().requires_grad_()
        output = weights @ (v.detach() if attention == "weights alone" else v)
        if attention == "cut":
            output = output.detach().requires_grad_()
        branch = output.transpose(0, 1).reshape(n, -1) @ attn.proj.weight.T + attn.proj.bias
        middle = tokens + scaled(block.ls1, branch)
        read = normed if is_parallel(block) else norm(block.norm2, middle, constant)
        tokens = middle + scaled(block.ls2, mlp(block.mlp, read, constant))
        steps.normed.append(normed)
        steps.scores.append(scores)
        steps.middles.append(middle)
        steps.results.append(tokens)
        steps.weights.append(weights)
        steps.values.append(v)
        steps.outputs.append(output)
    steps.logits = logits_of(net, steps.results, constant)
    if left_out is None:
        assert_faithful(net, image.detach(), steps.logits)
    return steps


def balanced_trace(net: Any, image: Tensor, cut_attention_input: bool = False) -> Trace:
    """What :func:`oracles.forward` gives, with balanced gradients, for the oracles that start from it."""
    leaf = image.detach().clone().requires_grad_()
    attention: Any = "weights alone" if cut_attention_input else "constant weights"
    steps = forward(net, leaf, constant=True, attention=attention)
    size = net.patch_embed.grid_size
    weights = steps.weights
    return Trace(leaf, size, steps.inputs, steps.normed, steps.scores, weights, steps.values, steps.logits)


def gradients(of: Tensor, at: list[Tensor]) -> list[Tensor]:
    """Gradients of a scalar; zeros where it does not depend."""
    found = torch.autograd.grad(of, at, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, at, strict=True)]


def bias_term(net: Any, score: Tensor) -> Tensor:
    """Σ over all biases after the position embedding of ⟨b, ∂score/∂b⟩."""
    after = ("blocks.", "norm.", "attn_pool.", "fc_norm.", "head.", "head_dist.")
    biases = [p for name, p in net.named_parameters() if name.startswith(after) and name.endswith("bias")]
    return torch.stack([(b * g).sum() for b, g in zip(biases, gradients(score, biases), strict=True)]).sum()


def grid(net: Any, tokens: Tensor) -> Tensor:
    """Token values [N] without the prefix tokens: [gh, gw]."""
    return tokens[net.num_prefix_tokens :].reshape(net.patch_embed.grid_size).detach()


def readout_row(net: Any, count: int) -> Tensor:
    """Weights [N] of the mean over the tokens that the head reads."""
    return readout_weights(net, count).mean(0)


# ---------------------------------------------------------------------------------------------------------------------
# Methods
# ---------------------------------------------------------------------------------------------------------------------


def evidence(net: Any, image: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """c_j = Σ_l Σ_h Σ_i A[i,j]·(g_i·v_j), with the token's own ⟨∂y/∂E_0, E_0⟩; the biases' term; the logit."""
    steps = forward(net, image, constant=True, attention="cut")
    score = steps.logits[target]
    (at_tokens,) = gradients(score, steps.inputs[:1])
    total = (at_tokens * steps.inputs[0]).sum(-1)
    for A, v, g in zip(steps.weights, steps.values, gradients(score, steps.outputs), strict=True):
        for head in range(len(A)):
            for i in range(A.shape[1]):
                total = total + A[head, i] * (v[head] @ g[head, i])
    return total.detach(), bias_term(net, score).detach(), score.detach()


def balanced(net: Any, image: Tensor, target: int, score: str = "logit") -> tuple[list[Tensor], Tensor, Tensor]:
    """Input×gradient [N] at the input of every block, the biases' term, and the score, of the balanced graph."""
    steps = forward(net, image, constant=True, attention="constant weights")
    value = (steps.logits if score == "logit" else steps.logits.softmax(0))[target]
    products = [(g * x).sum(-1).detach() for g, x in zip(gradients(value, steps.inputs), steps.inputs, strict=True)]
    return products, bias_term(net, value).detach(), value.detach()


def bias_tokens(net: Any, image: Tensor, target: int, score: str = "logit") -> Tensor:
    """The biases' terms by the token [N] at which each bias was added; those of pooled features are left out.

    Every bias is added to a token as ε_j·b; the derivative in ε_j at 1 is the sum of the terms of that token.
    """
    steps = forward(net, image, constant=True, attention="constant weights")
    value = (steps.logits if score == "logit" else steps.logits.softmax(0))[target]
    results: list[Tensor] = []
    units = torch.ones(len(steps.inputs[0]), 1, dtype=image.dtype, requires_grad=True)
    tokens = steps.inputs[0]
    for block, A in zip(net.blocks, steps.weights, strict=True):
        attn, n = block.attn, len(tokens)
        normed = norm(block.norm1, tokens, True) + (units - 1) * block.norm1.bias
        v = (
            (normed @ attn.qkv.weight.T + units * attn.qkv.bias)
            .reshape(n, 3, attn.num_heads, -1)
            .permute(1, 2, 0, 3)[2]
        )
        mixed = (A @ v).transpose(0, 1).reshape(n, -1)
        tokens = tokens + scaled(block.ls1, mixed @ attn.proj.weight.T + units * attn.proj.bias)
        hidden = normed
        if not is_parallel(block):
            hidden = norm(block.norm2, tokens, True) + (units - 1) * block.norm2.bias
        hidden = hidden @ block.mlp.fc1.weight.T + units * block.mlp.fc1.bias
        hidden = hidden * (0.5 * (1 + torch.erf(hidden / 2**0.5))).detach()
        tokens = tokens + scaled(block.ls2, hidden @ block.mlp.fc2.weight.T + units * block.mlp.fc2.bias)
        results.append(tokens)
    shifted = (units - 1) * net.norm.bias if isinstance(net.norm, nn.LayerNorm) else 0
    logits = head_of(net, features_of(net, results, True, shifted, units), True)
    torch.testing.assert_close(logits, steps.logits)
    again = (logits if score == "logit" else logits.softmax(0))[target]
    torch.testing.assert_close(again, value)
    return gradients(again, [units])[0][:, 0].detach()


def legrad(net: Any, image: Tensor, target: int, layers: int, readout: str = "mean") -> Tensor:
    """Σ over the last layers of mean_h mean_i (∂s_l/∂A_l)⁺, s_l = head(norm(mean over tokens of E_l)).

    With the class token in place of the mean over tokens: of its own row (distilled: two rows, and the mean of both).
    """
    steps = forward(net, image, attention="cut", cut_blocks=True)
    total = torch.zeros(len(steps.inputs[0]), dtype=image.dtype)
    for index in range(len(net.blocks))[-layers:]:
        tokens = steps.results[index]
        pooled = tokens.mean(0) if readout == "mean" else None
        score = logits_of(net, [tokens], False, pooled)[target]
        (g,) = gradients(score, [steps.outputs[index]])
        positive = (g @ steps.values[index].transpose(1, 2)).clamp(min=0)  # [H, N, N]
        mean = positive.mean(0)
        total = total + (mean.mean(0) if readout == "mean" else read_row(net, mean))
    return grid(net, total)


def tokentm(net: Any, image: Tensor, target: int) -> Tensor:
    """Row of the head's token of C_L = Π_l U_mlp U_attn diag‖E_0‖."""
    if any(is_parallel(block) for block in net.blocks):
        raise NoMap

    def change(x: Tensor, y: Tensor) -> Tensor:
        cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
        return y.norm(dim=-1) / (x.norm(dim=-1) + 1e-8) * torch.softmax(cosine, 0)

    steps = forward(net, image)
    found = gradients(steps.logits[target], steps.weights)
    count = len(steps.inputs[0])
    identity = torch.eye(count, dtype=image.dtype)
    product = torch.diag(steps.inputs[0].norm(dim=-1))
    for x, middle, y, A, g in zip(steps.inputs, steps.middles, steps.results, steps.weights, found, strict=True):
        attended = (A.mean(0) @ torch.diag(change(x, middle))) * g.clamp(min=0).mean(0)
        product = (identity + torch.diag(change(middle, y))) @ (identity + attended) @ product
    return grid(net, readout_row(net, count) @ product)


def token_dropping(net: Any, image: Tensor, target: int, score: str = "probability") -> Tensor:
    """p_c(x) − p_c(x without token j), by one forward of N − 1 tokens for every patch."""

    def value(left_out: int | None) -> Tensor:
        logits = forward(net, image, left_out=left_out).logits
        return (logits.softmax(0) if score == "probability" else logits)[target].detach()

    height, width = net.patch_embed.grid_size
    drops = [value(None) - value(j) for j in range(height * width)]
    return torch.stack(drops).reshape(height, width)
