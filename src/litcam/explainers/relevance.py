"""Relevance: Transformer attribution by layer-wise relevance propagation."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from timm.layers import Attention, Mlp
from timm.models import beit, vision_transformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from litcam.errors import UnsupportedModelError
from litcam.explainers.base import Explainer, check_layer, register
from litcam.vit.context import autograd_anywhere, eager
from litcam.vit.doubled import DoubleMode
from litcam.vit.gradients import class_gradients
from litcam.vit.hooks import quiet_hooks
from litcam.vit.lrp import share_linear, share_mean, share_product, share_sum
from litcam.vit.model import ViT
from litcam.vit.readout import Readout
from litcam.vit.recorder import record
from litcam.vit.sdpa import AttentionArguments, AttentionCall, AttentionMode, full
from litcam.vit.tail import agree
from litcam.vit.threads import in_this_thread
from litcam.vit.trace import AttentionTrace

_ELEMENTS_AT_ONCE = 2**26  # of all N×N matrices of one kind
_ELEMENTS_IN_CACHE = 2**19  # the same on a CPU


@register("relevance")
class Relevance(Explainer):
    """Transformer attribution (Chefer, Gur & Wolf, CVPR 2021), equations 13 and 14: Π_l (I + mean_h (∇A ⊙ R_A)⁺).

    ∇A = ∂y_c/∂A is the ordinary gradient of the class's raw logit at a layer's attention, and R_A the relevance of that
    attention: relevance starts as 1 at the logit and is walked back to it by the rules of :mod:`litcam.vit.lrp`. The
    map is the class token's row of the product, newest layer on the left, rows not normalised, as in the authors' code
    ("transformer_attribution"); their shares at a skip connection are taken over a whole batch, here over each image.

    One forward with autograd, one backward pass per class and one walk; of the products only the row is formed, and
    N×N matrices exist for one layer at a time. Three things are our reading. Distilled models share the relevance
    between their two heads as between two summands, average-pooled ones between the patch tokens by
    :func:`litcam.vit.lrp.share_mean`, and the row is the mean over the tokens that the head reads. The row of I alone
    is left out: it is 0 at the patches for a class token, and the same for every patch in an average-pooled model,
    where it would drown the rest. A bias on the attention scores takes no relevance, like those of Linear layers.

    Args:
        net: the model: plain pre-norm blocks, as in timm's vit, deit, deit3, dinov2, clip and beit.
        start_layer: the first layer of the product; the authors take 1 in their experiments, AGCAM's comparison 0.
        double: for a net in single precision, take what the walk divides by (tokens, queries and keys) from one more
            forward, in double precision. The map is then that of the net in double precision, see below.

    The map hangs on the few values of tokens that lie nearest to 0, for a skip connection shares R·a/(a + b). Those are
    what the rounding of a forward changes most, and double precision in the walk alone does not mend it. Of a real
    DINOv2 ViT-S/14 with 16 photographs, maps in single precision were off by .3 to .5 % of their maximum in the median
    and by up to 25 % (correlation .973); with average pooling, by 28 to 310 % for 6 of the photographs: nothing to look
    at. With ``double`` the error was at most 2.1e-4, at 1.5 times the time on a CPU; ``net.double()`` takes
    2.3 times. The exact map is as sensitive: of the four images with the largest errors, noise of 1e-5 standard
    deviations on the pixels moved it by 3 to 33 %. Of weights in half precision there is no map. It is zero everywhere
    if no attention has positive relevance times gradient.

    Raises:
        InputError: if the net has no such layer.
        UnsupportedModelError: when called, for a model with a part that the rules do not cover, or weights in half
            precision.
    """

    small_differences = True

    def __init__(self, net: nn.Module, start_layer: int = 0, double: bool = False) -> None:
        super().__init__(net)
        check_layer("start_layer", start_layer, len(self.vit.blocks))
        self.start_layer = start_layer
        self.double = double

    def trace(self, images: Tensor) -> AttentionTrace:
        return self._trace(self.vit, images)

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        forward = trace.graph
        if not isinstance(forward, _Forward):  # the trace is of somebody else's forward
            forward = self._trace(replace(self.vit, root=trace.module), trace.images).graph
        assert isinstance(forward, _Forward)
        start = range(len(forward.blocks))[self.start_layer]  # counted from 0, if it was given from the end
        outputs = [block.call.output for block in forward.blocks[start:]]
        gradients = class_gradients(trace.scores(forward.logits), targets, outputs)
        if self.double and forward.logits.dtype == torch.float32:
            forward = forward.refined(trace)
        with autograd_anywhere(trace.images.device.type), torch.no_grad():
            row = _walk(forward, targets, start, gradients)  # [K, B, N]
        return self.to_grid(trace, row).transpose(0, 1)  # [B, K, gh, gw]

    @staticmethod
    def _trace(vit: ViT, images: Tensor) -> AttentionTrace:
        made: list[_Forward] = []

        def forward(images: Tensor) -> Tensor:
            made.append(_Forward(vit, images))
            return made[0].logits

        trace = record(vit, images, {}, "full", forward)
        readout = trace.readout
        with quiet_hooks(vit.root, trace.hooks):  # norms run again
            made[0].follow(readout)
        return replace(trace, graph=made[0])


# ---------------------------------------------------------------------------------------------------------------------
# The forward
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LinearCall:
    """A Linear layer as it was called.

    Attributes:
        input: [B, …, I]
        weight: [O, I]
        bias: [O] or None
        output: [B, …, O]
        version: of the output when it was made; timm's BEiT may add its bias to it afterwards.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Tensor
    version: int

    def share(self, relevance: Tensor, rows: slice | Tensor = slice(None)) -> Tensor:
        """Relevance [K, B, …, I] of the input from that of the output, [K, B, …, O]; rows choose tokens of both."""
        x, weight = full(self.input[:, rows]), full(self.weight)
        if self.output._version != self.version:
            product = F.linear(x, weight)
        else:
            output = full(self.output[:, rows])
            product = output if self.bias is None else output - full(self.bias)
        return share_linear(x, weight, product, relevance)

    def mirrored(self) -> "_LinearCall":
        """A layer of one output z as one of the scores (−z, z) of two classes."""
        bias = None if self.bias is None else torch.cat([-self.bias, self.bias])
        output = torch.cat([-self.output, self.output], -1)
        return _LinearCall(self.input, torch.cat([-self.weight, self.weight]), bias, output, output._version)


class _LinearMode(TorchFunctionMode):
    """Keeps every call of ``F.linear``, by its weight: BEiT calls it without its Linear module."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Tensor, list[_LinearCall]] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function is F.linear:
            self._keep(output, *args, **(kwargs or {}))
        return output

    def _keep(self, output: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        call = _LinearCall(input, weight, bias, output, output._version)
        self.calls.setdefault(weight, []).append(call)


@dataclass(frozen=True)
class _Block:
    """What a block did: attention and MLP, each a branch that is added to the tokens.

    Attributes:
        tokens: [B, N, D] before the attention, between the branches, and after the MLP.
        call: the attention; its output is in the graph.
        qkv, proj, fc1, fc2: the Linear layers.
    """

    tokens: tuple[Tensor, Tensor, Tensor]
    call: AttentionCall
    qkv: _LinearCall
    proj: _LinearCall
    fc1: _LinearCall
    fc2: _LinearCall


class _Forward:
    """One forward with autograd, and all that the walk needs of it; hooks and modes are gone when it has been made.

    Attributes:
        logits: [B, C], in the graph.
        blocks: first block first.
        readout: the tokens that the head reads.
        tokens: [B, N, D], after the final norm.
        heads: the Linear layers that made the logits; the logits are the mean of their outputs.

    Raises:
        UnsupportedModelError: for a model with a part that the rules do not cover.
    """

    def __init__(self, vit: ViT, images: Tensor) -> None:
        self.vit = vit
        self._attention: list[AttentionCall] = []
        self._seen: dict[nn.Module | None, tuple[Tensor, Any]] = {}  # first argument and output of a module
        self._linears = _LinearMode()
        with ExitStack() as context:
            for watched in _watched(vit):
                context.callback(watched.register_forward_hook(in_this_thread(self._see)).remove)
            context.enter_context(self._linears)
            context.enter_context(AttentionMode(self._attend))
            self.logits: Tensor = vit.root(images)

    def follow(self, readout: Readout) -> None:
        """Find the way from the images to the logits in what has been seen."""
        self.readout = readout
        _check_blocks(self.vit)
        self.blocks = [self._block(index, block) for index, block in enumerate(self.vit.blocks)]
        self.tokens = self._final_tokens()
        self.heads = self._heads()

    def refined(self, trace: AttentionTrace) -> "_Forward":
        """The same forward with tokens, queries and keys from one more run, in double precision."""
        with eager(), autograd_anywhere(trace.images.device.type), torch.no_grad(), DoubleMode():
            exact = _Forward(self.vit, trace.images.double())
            if not trace.agrees(exact.logits):
                _refuse(f"logits of {type(self.vit.root).__name__} that are others when it runs again")
            exact.follow(self.readout)
        refined = copy.copy(self)
        refined.blocks = [
            replace(block, tokens=new.tokens, call=replace(block.call, query=new.call.query, key=new.call.key))
            for block, new in zip(self.blocks, exact.blocks, strict=True)
        ]
        return refined

    def _see(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._seen[module] = (arguments[0], output)

    def _attend(self, arguments: AttentionArguments, attend: Callable[[], Tensor]) -> Tensor:
        output = attend()
        if arguments.is_self_attention:
            self._attention.append(arguments.call(output))
        return output

    def _block(self, index: int, block: Any) -> _Block:
        before, after = self._seen[block]
        if index and self._seen[self.vit.blocks[index - 1]][1] is not before:
            _refuse(f"what {type(self.vit.net).__name__} does between the blocks {index - 1} and {index}")
        layers = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
        calls = {name: self._linear(f"{name} of block {index}", layer) for name, layer in layers.items()}
        return _Block((before, self._seen[block.norm2][0], after), self._attention[index], **calls)

    def _linear(self, name: str, layer: nn.Module) -> _LinearCall:
        """The one call of a Linear layer."""
        if type(layer).forward is not nn.Linear.forward:
            _refuse(f"{type(layer).__name__} as {name}")
        calls = self._linears.calls.get(layer.weight, [])  # type: ignore[arg-type]
        if len(calls) != 1:
            _refuse(f"a weight that a forward uses {len(calls)} times ({name})")
        return calls[0]

    def _final_tokens(self) -> Tensor:
        before, after = self._seen.get(getattr(self.vit.net, "norm", None), (None, None))
        if before is not self.blocks[-1].tokens[2] or not isinstance(after, Tensor):
            _refuse(f"what {type(self.vit.net).__name__} does between its blocks and its norm")
        return after

    def _heads(self) -> list[_LinearCall]:
        """The Linear layers on the pooled tokens whose mean the logits are."""
        net = self.vit.net
        modules = [getattr(net, name) for name in ("head", "head_dist") if hasattr(net, name)]
        features = self._features()
        if len(features) != len(modules) or not all(
            head in self._seen and agree(self._seen[head][0], feature)
            for head, feature in zip(modules, features, strict=True)
        ):
            pooling = getattr(net, "global_pool", None)
            _refuse(f"the way from the tokens to the head of {type(net).__name__} (global_pool={pooling!r})")
        if isinstance(net.head, nn.Identity):  # the head is the user's own
            pooled = self._seen[net.head][1]
            heads = [
                call for calls in self._linears.calls.values() for call in calls if torch.equal(call.input, pooled)
            ]
        else:
            heads = [self._linear("head", head) for head in modules]
        if len(heads) != len(modules) or not agree(_mean([head.output for head in heads]), self.logits):
            _refuse(f"the way from the pooled tokens to the logits of {type(self.vit.root).__name__}")
        return heads

    def _features(self) -> list[Tensor]:
        """What the heads should read, each [B, D]: weighted means of tokens."""
        tokens = self.tokens.detach()
        norm = getattr(self.vit.net, "fc_norm", nn.Identity())
        return [norm(weights.to(tokens) @ tokens) for weights in self.readout.features]


def _watched(vit: ViT) -> list[nn.Module]:
    """The modules whose inputs and outputs are wanted, as far as the net has them."""
    net = vit.net
    names = [getattr(net, name, None) for name in ("norm", "head", "head_dist")]
    candidates = [*vit.blocks, *(getattr(block, "norm2", None) for block in vit.blocks), *names]
    return [candidate for candidate in candidates if isinstance(candidate, nn.Module)]


def _check_blocks(vit: ViT) -> None:
    """Refuse blocks that the rules do not cover; subclasses that compute the same are taken."""
    block: Any
    for index, block in enumerate(vit.blocks):
        _check_part(f"as block {index}", block, vision_transformer.Block, beit.Block)
        _check_part(f"in block {index}", block.attn, Attention, beit.Attention)
        _check_part(f"in block {index}", block.mlp, Mlp)
        if getattr(block.attn, "gate", None) is not None:
            _refuse(f"the gate of the attention in block {index}")


def _check_part(place: str, part: nn.Module, *known: type[nn.Module]) -> None:
    if type(part).forward not in [kind.forward for kind in known]:
        _refuse(f"{type(part).__name__} {place}")


def _refuse(part: str) -> NoReturn:
    raise UnsupportedModelError(
        f"relevance has no rule for {part}: it supports timm's vit, deit, deit3, dinov2, clip and beit with plain "
        "pre-norm blocks (attention without rotary positions or gate, then an MLP of two Linear layers) and one Linear "
        "head on the class token, on the class and distillation tokens, or on the mean of the patch tokens."
    )


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).mean(0)


# ---------------------------------------------------------------------------------------------------------------------
# The walk
# ---------------------------------------------------------------------------------------------------------------------


def _walk(forward: _Forward, targets: Tensor, start: int, gradients: Sequence[Tensor]) -> Tensor:
    """The readout's row of the product over the layers from ``start`` on, less that of I: [K, B, N].

    Args:
        forward: what is walked back.
        targets: class indices [B, K].
        start: the first layer of the product.
        gradients: [K, B, H, N, d] at the attention outputs of the layers from ``start`` on.
    """
    rows: slice | Tensor = forward.readout.rows  # in the last block no other token has relevance
    relevance = _head_relevance(forward, targets)  # [K, B, R, D]
    own = forward.readout.row(full(forward.tokens[..., 0]))  # of I, kept apart: it would drown what is added
    gained = own.new_zeros(len(relevance), *own.shape)  # [K, B, N]
    for index in reversed(range(start, len(forward.blocks))):
        block, gradient = forward.blocks[index], gradients[index - start]
        before, between, after = (full(tokens[:, rows]) for tokens in block.tokens)
        skip, branch = share_sum(between, after - between, relevance)
        skip, branch = share_sum(before, between - before, skip + block.fc1.share(block.fc2.share(branch, rows), rows))
        heads = block.proj.share(branch, rows).unflatten(-1, (gradient.shape[2], -1)).transpose(2, 3)  # [K, B, H, R, d]
        step, joined = _attention_relevance(block.call, gradient, heads, rows, own + gained, further=index > start)
        gained += step
        if joined is not None:
            relevance = block.qkv.share(joined)  # [K, B, N, D]
            relevance[:, :, rows] += skip
        rows = slice(None)
    return gained


def _head_relevance(forward: _Forward, targets: Tensor) -> Tensor:
    """Relevance [K, B, R, D] of the tokens that the head reads, before the final norm."""
    mirror = forward.logits.shape[1] == 1 and not forward.vit.regression
    heads = [head.mirrored() if mirror else head for head in forward.heads]
    scores = F.one_hot(targets.T, heads[0].output.shape[1]).to(full(forward.logits).dtype)  # [K, B, C]
    if len(heads) == 2:
        half, other_half = (full(head.output) / 2 for head in heads)
        parts = share_sum(half, other_half, scores)
        features = [head.share(part) for head, part in zip(heads, parts, strict=True)]
    else:
        features = [heads[0].share(scores)]  # [K, B, D]
    tokens = full(forward.tokens[:, forward.readout.rows])
    weights = forward.readout.features[:, forward.readout.tokens].to(tokens)  # [F, R]
    return torch.stack([share_mean(tokens, *pair) for pair in zip(weights, features, strict=True)]).sum(0)


def _attention_relevance(
    call: AttentionCall, gradient: Tensor, relevance: Tensor, rows: slice | Tensor, row: Tensor, further: bool
) -> tuple[Tensor, Tensor | None]:
    """Walk back through an attention.

    Args:
        call: the attention, N tokens.
        gradient: [K, B, H, N, d], ∂y_c/∂output.
        relevance: [K, B, H, R, d], of the chosen rows of the output.
        rows: those rows; the others have no relevance.
        row: [K, B, N], of the product over the later layers.
        further: whether the walk goes on.

    Returns:
        The row times mean_h (∇A ⊙ R_A)⁺, [K, B, N]; and, if the walk goes on, relevance [K, B, N, 3·H·d] of queries,
        keys and values, laid out as the output of the qkv layer.
    """
    classes, batch, heads, length, width = relevance.shape
    tokens = row.shape[2]
    step = torch.empty_like(row)
    joined = relevance.new_zeros(classes, batch, tokens, 3, heads, width) if further else None
    elements = _ELEMENTS_IN_CACHE if row.device.type == "cpu" else _ELEMENTS_AT_ONCE
    at_once = max(1, elements // (classes * heads * length * tokens))  # images
    for first in range(0, batch, at_once):
        chunk = slice(first, first + at_once)
        query, output = (full(x[chunk, :, rows]) for x in (call.query, call.output))  # [b, H, R, d]
        key, value = (full(x[chunk]).transpose(-2, -1) for x in (call.key, call.value))  # [b, H, d, N]
        scores = query @ key  # [b, H, R, N]
        biased = scores * call.scale
        if call.bias is not None:
            biased += call.bias.expand(batch, heads, tokens, tokens)[chunk, :, rows]
        attention = biased.softmax(-1).to(output.dtype)
        of_attention, of_value = share_product(attention, value.transpose(-2, -1), output, relevance[:, chunk])
        weights = (full(gradient[:, chunk, :, rows]) @ value).mul_(of_attention).relu_()  # (∇A ⊙ R_A)⁺ [K, b, H, R, N]
        step[:, chunk] = (row[:, chunk, None, None, rows] @ weights).sum((2, 3)) / heads
        if joined is not None:
            of_query, of_key = share_product(query, key, scores, of_attention)
            of_all = joined[:, chunk].permute(3, 0, 1, 4, 2, 5)  # [3, K, b, H, N, d]
            of_all[0][..., rows, :], of_all[1], of_all[2] = of_query, of_key.transpose(-2, -1), of_value
    return step, None if joined is None else joined.flatten(3)
