"""ViT-ReciproCAM: the last block looks at one patch at a time."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litcam.attention import AttentionTrace, agree, cannot_resume
from litcam.errors import check_at_least, check_choice
from litcam.explainers.base import Explainer, register
from litcam.sdpa import AttentionArguments, AttentionCall, Handler

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
        UnsupportedModelError: if the last block cannot be run again by itself.
    """

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
        one_attention = trace.num_calls == len(self.vit.blocks)
        with torch.autocast(trace.images.device.type, enabled=False):  # masks differ by less than bfloat16 resolves
            logits = self._in_closed_form(trace) if self.vit.pools_class_token and one_attention else None
            if logits is None:
                logits = self._directly(trace)
        scores = logits.softmax(-1) if self.score == "softmax" else logits  # [B, patches, C]
        chosen = scores.gather(2, targets[:, None].expand(-1, scores.shape[1], -1))
        return chosen.transpose(1, 2).reshape(*targets.shape, *trace.grid)

    def _in_closed_form(self, trace: AttentionTrace) -> Tensor | None:
        """Logits [B, patches, C] of all masks; None if the same way does not give the recorded logits without one."""
        tokens, rows, least = self._tokens(trace), self.vit.readout, min(self.kernel.values())
        captures = self._capture(
            trace,
            [(tokens, 1.0, 1.0), (tokens, 1.0, self.keep), (tokens, 0.0, self.keep), (tokens[:1], least, self.keep)],
        )
        if not captures:
            return None
        unmasked, one, zero, sample = captures
        # Scores and values are affine in the weight unless a norm is in the way: the sample shows it.
        weights = sorted(set(self.kernel.values()))
        between = {weight: zero.towards(one, weight) for weight in weights}
        if not between[least].agrees(sample):
            between = dict(
                zip(weights, self._capture(trace, [(tokens, weight, self.keep) for weight in weights]), strict=True)
            )
        outputs = self._exchange(zero, between, trace.grid)
        answers = torch.cat([(unmasked.scores.softmax(-1) @ unmasked.values)[:, None], outputs], 1)
        batch, count = answers.shape[:2]  # of [B, 1 + patches, H, R, d]
        keep = tokens.new_full((batch, count, 1, 1), self.keep)
        keep[:, 0] = 1
        logits = self._resume(
            trace,
            tokens[:, rows].repeat_interleave(count, 0),
            keep.flatten(0, 1),
            lambda arguments, attend: answers.flatten(0, 1).to(arguments.query.dtype),
        )
        if logits is None or len(logits) != batch * count:
            return None
        logits = logits.reshape(batch, count, -1)
        return logits[:, 1:] if agree(logits[:, 0], trace.logits) else None

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
            raise _Captured

        self._resume(trace, torch.cat([tokens for tokens, _, _ in masked]), torch.cat(masks), capture)
        if not calls:
            return []
        sizes = [len(tokens) for tokens, _, _ in masked]
        scores, values = calls[0].scores(self.vit.readout).split(sizes), calls[0].value.float().split(sizes)
        return [_Capture(*pair) for pair in zip(scores, values, strict=True)]

    def _exchange(self, zero: "_Capture", kernel: dict[float, "_Capture"], grid: tuple[int, int]) -> Tensor:
        """Attention outputs [B, patches, H, R, d] of the head's tokens under every mask.

        Args:
            zero: all patches at weight 0.
            kernel: all patches at a weight of the kernel, by weight.
            grid: rows and columns of patches.
        """
        peak = torch.stack([capture.scores.amax(-1) for capture in (zero, *kernel.values())]).amax(0)
        nothing = zero.terms(peak)
        total = nothing.sum(-2)[..., None, None, :]  # [B, H, R, 1, 1, d + 1]
        for weight, capture in kernel.items():
            change = (capture.terms(peak) - nothing)[..., self.vit.num_prefix_tokens :, :].unflatten(-2, grid)
            for offset in (offset for offset, other in self.kernel.items() if other == weight):
                total = total + _shift(change, *offset)
        outputs = total[..., :-1] / total[..., -1:]  # [B, H, R, gh, gw, d]
        return outputs.flatten(3, 4).movedim(3, 1)

    def _directly(self, trace: AttentionTrace) -> Tensor:
        """Logits [B, patches, C] of all masks, the last block run once per mask."""
        tokens, batch = self._tokens(trace), len(trace.images)
        skim = self._works(trace)
        patches = tokens.shape[1] - self.vit.num_prefix_tokens
        logits = []
        eye = torch.eye(patches, dtype=tokens.dtype, device=tokens.device).view(patches, *trace.grid, 1)
        kernels = torch.stack([weight * _shift(eye, -dy, -dx) for (dy, dx), weight in self.kernel.items()]).sum(0)
        masks = F.pad(kernels.flatten(1, 2), (0, 0, self.vit.num_prefix_tokens, 0), value=self.keep)  # [patches, N, 1]
        for some in masks.split(max(1, self.batch_size // batch)):
            masked = self._resume(trace, tokens.repeat_interleave(len(some), 0), some.repeat(batch, 1, 1), skim=skim)
            assert masked is not None  # it worked without masks
            logits.append(masked.unflatten(0, (batch, len(some))))
        return torch.cat(logits, 1)

    def _tokens(self, trace: AttentionTrace) -> Tensor:
        """What entered the last block, [B, N, D], in the precision of the net."""
        return trace.last_input.tokens.to(self.vit.dtype)

    def _resume(
        self, trace: AttentionTrace, tokens: Tensor, mask: Tensor, handle: Handler | None = None, skim: bool = True
    ) -> Tensor | None:
        """Logits of the last block on tokens [R, N, D] under a mask [R, N, 1]."""
        if self.feature == "block":
            return trace.resume(tokens * mask, handle, skim=skim)
        return trace.resume(tokens, handle, lambda features: features * mask, skim)

    def _works(self, trace: AttentionTrace) -> bool:
        """Whether the last block can be reached by skimming the others; raises if it cannot be reached at all."""
        for skim in (True, False):
            logits = trace.resume(self._tokens(trace), skim=skim)
            if logits is not None and agree(logits, trace.logits):
                return skim
        raise cannot_resume(trace)


class _Capture(NamedTuple):
    """What the last block's attention gets under a mask."""

    scores: Tensor  # [B, H, R, N], of the tokens that the head reads
    values: Tensor  # [B, H, N, d]

    def towards(self, other: "_Capture", share: float) -> "_Capture":
        """The point between two captures."""
        return _Capture(*(mine + share * (its - mine) for mine, its in zip(self, other, strict=True)))

    def agrees(self, sample: "_Capture") -> bool:
        """Whether the first image's capture is this one, within rounding."""
        return all(
            bool((mine[:1] - its).abs().max() <= 1e-4 * its.abs().max()) for mine, its in zip(self, sample, strict=True)
        )

    def terms(self, peak: Tensor) -> Tensor:
        """Every token's part in numerator and denominator of the softmax: [B, H, R, N, d + 1]."""
        exponentials = (self.scores - peak[..., None]).exp()[..., None]
        return torch.cat([exponentials * self.values[:, :, None], exponentials], -1)


class _Captured(Exception):
    """Stops the last block where its queries, keys and values are known."""


def _shift(grid: Tensor, down: int, right: int) -> Tensor:
    """The values [..., gh, gw, d] of the patches that lie so many rows down and columns right; 0 outside the grid."""
    height, width = grid.shape[-3:-1]
    padded = F.pad(grid, (0, 0, 1, 1, 1, 1))
    return padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width, :]
