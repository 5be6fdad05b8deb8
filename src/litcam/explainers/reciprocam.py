"""ViT-ReciproCAM: the last block looks at one patch at a time."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litcam.errors import UnsupportedModelError, check_at_least, check_choice
from litcam.explainers.base import Explainer, register
from litcam.vit.sdpa import AttentionArguments, AttentionCall, full
from litcam.vit.trace import AttentionTrace

_GAUSSIAN = {(dy, dx): (2 - abs(dy)) * (2 - abs(dx)) / 16 for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
KERNELS: dict[str, dict[tuple[int, int], float]] = {"gaussian": _GAUSSIAN, "dirac": {(0, 0): 1.0}}


@register("reciprocam")
class ReciproCAM(Explainer):
    """ViT-ReciproCAM (Byun & Lee, 2023, equations 2 and 4): the class's score when the features of one patch are left.

    The features of the last block, what its attention reads, are multiplied by a mask that is 1 at the prefix tokens, a
    kernel around one patch (cut at the border, not renormalised) and 0 elsewhere; the residual stream stays whole. The
    map at that patch is the score of the class then. All classes come from one pass.

    Where the head reads prefix tokens, the masks share all keys and values but those under the kernel: their softmax is
    summed over all patches at zero features once, and for each mask the kernel's terms are exchanged in it. All masks
    together then cost about a tenth of a forward. Any other head takes the direct way, the last block once per patch.

    Args:
        net: the model.
        kernel: ``"gaussian"`` is [1 2 1; 2 4 2; 1 2 1] / 16, ``"dirac"`` the patch alone.
        keep_class_token: whether the prefix tokens keep their features; otherwise they are masked too.
        feature: ``"norm1"`` masks what the attention reads; ``"block"`` (the paper's ablation) what enters the block,
            and so the residual stream.
        score: ``"softmax"`` for the class's probability, ``"logit"`` for its raw logit.
        batch_size: masked images per run of the last block on the direct way; bounds the memory.

    Raises:
        InputError: for an option out of its range.
        UnsupportedModelError: when called, if the last block cannot be run again by itself, or for weights in half
            precision.
    """

    small_differences = True

    def __init__(
        self,
        net: nn.Module,
        kernel: Literal["gaussian", "dirac"] = "gaussian",
        keep_class_token: bool = True,
        feature: Literal["norm1", "block"] = "norm1",
        score: Literal["softmax", "logit"] = "softmax",
        batch_size: int = 256,
    ) -> None:
        super().__init__(net)
        check_choice("kernel", kernel, KERNELS)
        check_choice("feature", feature, ("norm1", "block"))
        check_choice("score", score, ("softmax", "logit"))
        check_at_least("batch_size", batch_size)
        self.kernel = KERNELS[kernel]
        self.keep = float(keep_class_token)
        self.feature = feature
        self.score = score
        self.batch_size = batch_size

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        if self.feature == "norm1":
            trace.check_features()
        with torch.autocast(trace.images.device.type, enabled=False):  # masks differ by less than bfloat16 resolves
            logits = self._in_closed_form(trace) if trace.reads_only_prefix and not trace.parallel else None
            if logits is None:
                logits = self._directly(trace)
        score = trace.probabilities if self.score == "softmax" else trace.scores
        scores: Tensor = score(logits.flatten(0, 1)).unflatten(0, logits.shape[:2])  # [B, patches, C]
        chosen = scores.gather(2, targets[:, None].expand(-1, scores.shape[1], -1))
        return chosen.transpose(1, 2).reshape(*targets.shape, *trace.grid)

    def _in_closed_form(self, trace: AttentionTrace) -> Tensor | None:
        """Logits [B, patches, C] of all masks; None if the same way does not give the recorded logits without one."""
        tokens, rows = self._tokens(trace), _rows(trace)
        weights = sorted(set(self.kernel.values()))
        # All patches at weight 1, at 0 (the same for every image) and, as a sample, at one between; then no mask.
        wanted = [(tokens, 1.0, self.keep), (tokens[:1], 0.0, self.keep), (tokens[:1], weights[0], self.keep)]
        captures = self._capture(trace, wanted if self.keep else [*wanted, (tokens, 1.0, 1.0)])
        if not captures:
            return None
        one, empty, sample, unmasked = *captures[:3], captures[-1 if not self.keep else 0]
        zero = one.with_patches_of(empty, self.vit.num_prefix_tokens)
        # Scores and values are affine in the weight unless a norm is in the way: the sample shows it.
        between = {weight: zero.towards(one, weight) for weight in weights}
        if not between[weights[0]].agrees(sample):
            between = dict(
                zip(weights, self._capture(trace, [(tokens, weight, self.keep) for weight in weights]), strict=True)
            )
        outputs = self._exchange(zero, between, trace.grid)
        answers = torch.cat([(unmasked.scores.softmax(-1) @ unmasked.value)[:, None], outputs], 1)
        batch, count = answers.shape[:2]  # of [B, 1 + patches, H, R, d]
        keep = tokens.new_full((batch, count, 1, 1), self.keep)
        keep[:, 0] = 1
        masked, features = self._masked(tokens[:, rows].repeat_interleave(count, 0), keep.flatten(0, 1))
        logits = trace.resume(
            masked, lambda arguments, attend: answers.flatten(0, 1).to(arguments.query.dtype), features
        )
        if logits is None or len(logits) != batch * count:
            return None
        logits = logits.reshape(batch, count, -1)
        return logits[:, 1:] if trace.agrees(logits[:, 0]) else None

    def _capture(self, trace: AttentionTrace, masked: list[tuple[Tensor, float, float]]) -> list["_Capture"]:
        """What the last block's attention would get from tokens [B, N, D] under masks; empty if it cannot be reached.

        Args:
            trace: says which block.
            masked: tokens, weight of their patches, weight of their prefix tokens.
        """
        prefix = self.vit.num_prefix_tokens
        masks = []
        for tokens, weight, prefix_weight in masked:
            mask = tokens.new_full((*tokens.shape[:2], 1), weight)
            mask[:, :prefix] = prefix_weight
            masks.append(mask)
        calls: list[AttentionCall] = []

        def capture(arguments: AttentionArguments, attend: Callable[[], Tensor]) -> Tensor:
            calls.append(arguments.call(arguments.query))
            return arguments.query

        tokens, features = self._masked(torch.cat([tokens for tokens, _, _ in masked]), torch.cat(masks))
        trace.attend_last(tokens, capture, features)
        (call,), rows = calls, _rows(trace)
        bias = call.bias if call.bias is None or call.bias.shape[-2] == 1 else call.bias[..., rows, :]
        if bias is not None and len(bias) != 1:  # one for each image, not one for all
            return []
        sizes = [len(tokens) for tokens, _, _ in masked]
        queries, keys, values = (full(x).split(sizes) for x in (call.query[:, :, rows], call.key, call.value))
        each = zip(queries, keys, values, strict=True)
        return [_Capture.of(query * call.scale, key, value, bias) for query, key, value in each]

    def _exchange(self, zero: "_Capture", kernel: dict[float, "_Capture"], grid: tuple[int, int]) -> Tensor:
        """Attention outputs [B, patches, H, R, d] of the head's tokens under every mask.

        Args:
            zero: all patches at weight 0.
            kernel: all patches at a weight of the kernel, by weight.
            grid: rows and columns of patches.
        """
        peak = torch.stack([capture.scores.amax(-1) for capture in (zero, *kernel.values())]).amax(0)
        nothing = zero.terms(peak)  # [B, H, R, N, d + 1]
        patches = slice(self.vit.num_prefix_tokens, None)
        total = nothing.sum(-2)[..., None, None, :].repeat(1, 1, 1, *grid, 1)  # [B, H, R, gh, gw, d + 1]
        for weight, capture in kernel.items():
            change = (capture.terms(peak) - nothing)[..., patches, :].unflatten(-2, grid)
            for offset in (offset for offset, other in self.kernel.items() if other == weight):
                here, there = _overlap(grid, offset)
                total[..., *here, :] += change[..., *there, :]
        outputs = total[..., :-1] / total[..., -1:]
        return outputs.flatten(3, 4).movedim(3, 1)

    def _directly(self, trace: AttentionTrace) -> Tensor:
        """Logits [B, patches, C] of all masks, the last block run once per mask."""
        tokens, batch = self._tokens(trace), len(trace.images)
        _, skim = trace.resume_as_recorded()
        patches = tokens.shape[1] - self.vit.num_prefix_tokens
        logits = []
        around = tokens.new_zeros(*trace.grid, *trace.grid)  # a mask for each patch
        down, across = torch.meshgrid(*(torch.arange(side, device=tokens.device) for side in trace.grid), indexing="ij")
        for offset, weight in self.kernel.items():
            here, there = _overlap(trace.grid, offset)
            around[down[here], across[here], down[there], across[there]] = weight
        masks = F.pad(around.view(patches, patches, 1), (0, 0, self.vit.num_prefix_tokens, 0), value=self.keep)
        for some in masks.split(max(1, self.batch_size // batch)):
            masked, features = self._masked(tokens.repeat_interleave(len(some), 0), some.repeat(batch, 1, 1))
            of_masks = trace.resume(masked, None, features, skim)
            if of_masks is None or len(of_masks) != len(masked):
                raise UnsupportedModelError(
                    f"reciprocam: {type(trace.module).__name__} cannot run its last block on masked images."
                )
            logits.append(of_masks.unflatten(0, (batch, len(some))))
        return torch.cat(logits, 1)

    def _tokens(self, trace: AttentionTrace) -> Tensor:
        """What entered the last block, [B, N, D], in the precision of the net."""
        return trace.last_input.tokens.to(self.vit.dtype)

    def _masked(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
        """What a mask [R, N, 1] makes of tokens [R, N, D] before the last block, and of the features in it."""
        if self.feature == "block":
            return tokens * mask, None
        return tokens, lambda features: features * mask


@dataclass(frozen=True)
class _Capture:
    """What the last block's attention gets under a mask, R tokens that the head reads.

    Attributes:
        query: [B, H, R, d], times the scale.
        key: [B, H, N, d]
        value: [B, H, N, d]
        bias: added to the scores, or None.
        scores: [B, H, R, N]
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    scores: Tensor

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> "_Capture":
        scores = query @ key.transpose(-2, -1)
        return cls(query, key, value, bias, scores if bias is None else scores + full(bias))

    def with_patches_of(self, other: "_Capture", prefix: int) -> "_Capture":
        """The same with the keys and values that another capture, of one image, has at the patches."""
        key, value = (
            torch.cat([mine[:, :, :prefix], its[:, :, prefix:].expand(len(mine), -1, -1, -1)], 2)
            for mine, its in ((self.key, other.key), (self.value, other.value))
        )
        return self.of(self.query, key, value, self.bias)

    def towards(self, other: "_Capture", share: float) -> "_Capture":
        """The point between two captures with the same queries; its keys are left out."""
        scores, value = self.scores.lerp(other.scores, share), self.value.lerp(other.value, share)
        return replace(self, scores=scores, value=value)

    def agrees(self, sample: "_Capture") -> bool:
        """Whether the first image's capture is this one, within rounding."""
        pairs = ((self.scores, sample.scores), (self.value, sample.value))
        return all(bool((mine[:1] - its).abs().max() <= 1e-4 * its.abs().max()) for mine, its in pairs)

    def terms(self, peak: Tensor) -> Tensor:
        """Every token's part in numerator and denominator of the softmax: [B, H, R, N, d + 1]."""
        exponentials = (self.scores - peak[..., None]).exp()[..., None]
        return torch.cat([exponentials * self.value[:, :, None], exponentials], -1)


def _rows(trace: AttentionTrace) -> slice:
    """The first tokens, as far as the head reads any."""
    return slice(0, int(trace.readout.tokens[-1]) + 1)


def _overlap(grid: tuple[int, int], offset: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The patches whose neighbour at an offset lies in the grid, and those neighbours."""
    here = tuple(slice(max(0, -by), side - max(0, by)) for side, by in zip(grid, offset, strict=True))
    there = tuple(slice(max(0, by), side - max(0, -by)) for side, by in zip(grid, offset, strict=True))
    return (here[0], here[1]), (there[0], there[1])
