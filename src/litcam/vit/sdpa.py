"""Scaled dot-product attention as it happens: a call, its arguments, and the mode that sees it and may answer it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from litcam.errors import UnsupportedModelError


@dataclass(frozen=True)
class AttentionCall:
    """One self-attention call: H heads of width d over N tokens, prefix tokens first.

    Attributes:
        query: [B, H, N, d]
        key: [B, H, N, d]
        value: [B, H, N, d]
        bias: added to the scores, broadcastable to [B, H, N, N], or None.
        scale: factor of the scores.
        output: [B, H, N, d], the attention-weighted values.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    scale: float
    output: Tensor

    def scores(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Scores before the softmax of the chosen query rows, S = q·kᵀ·scale + bias: [B, H, R, N], float32 at least."""
        scores = full(self.query[:, :, rows]) @ full(self.key).transpose(-2, -1) * self.scale
        if self.bias is None:
            return scores
        bias = self.bias if self.bias.shape[-2] == 1 else self.bias[..., rows, :]
        return scores + full(bias)

    def weights(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Attention A = softmax(S) of the chosen query rows: [B, H, R, N], float32 at least."""
        return self.scores(rows).softmax(-1)


def full(tensor: Tensor) -> Tensor:
    """The tensor in at least single precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class AttentionArguments:
    """The arguments of a scaled_dot_product_attention call, by its own signature."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def is_self_attention(self) -> bool:
        """An attention pool has other queries than keys: it belongs to the head."""
        return self.query.shape[-2] == self.key.shape[-2]

    def detached(self) -> "AttentionArguments":
        """The same arguments, cut from the graph."""
        mask = None if self.attn_mask is None else self.attn_mask.detach()
        query, key, value = self.query.detach(), self.key.detach(), self.value.detach()
        return replace(self, query=query, key=key, value=value, attn_mask=mask)

    def attend(self) -> Tensor:
        """What torch makes of the arguments."""
        return F.scaled_dot_product_attention(**self.__dict__)

    def call(self, output: Tensor) -> AttentionCall:
        """The call as the readers see it."""
        if self.is_causal or self.enable_gqa:
            raise UnsupportedModelError("Causal and grouped-query attention are not supported.")
        bias = self.attn_mask
        if bias is not None and bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=self.query.dtype).masked_fill_(~bias, float("-inf"))
        scale = self.query.shape[-1] ** -0.5 if self.scale is None else self.scale
        return AttentionCall(self.query, self.key, self.value, bias, scale, output)


def merge(calls: Sequence[AttentionCall]) -> AttentionCall:
    """The self-attention calls of one block as one call: parallel attentions are one with the heads of all.

    Raises:
        UnsupportedModelError: for calls that are no attentions of their own, such as the two of a differential
            attention, which weigh the same values.
    """
    if len(calls) == 1:
        return calls[0]
    first = calls[0]
    same = all(call.query.shape == first.query.shape and call.scale == first.scale for call in calls)
    if not same or any(torch.equal(call.value, first.value) for call in calls[1:]):
        raise UnsupportedModelError(
            f"A block of the model makes {len(calls)} self-attention calls that are not attentions side by side (as "
            "the two of a differential attention, one of which is subtracted): methods that read attention cannot "
            "combine them; rise, saliency, gradcam and token_dropping do not need to."
        )
    query, key, value, output = (
        torch.cat([getattr(call, name) for call in calls], 1) for name in ("query", "key", "value", "output")
    )
    biases = [call.bias for call in calls]
    bias = None
    if any(one is not None for one in biases):
        shape = (len(query), first.query.shape[1], query.shape[2], key.shape[2])
        bias = torch.cat([query.new_zeros(shape) if one is None else one.expand(shape) for one in biases], 1)
    return AttentionCall(query, key, value, bias, first.scale, output)


Handler = Callable[[AttentionArguments, Callable[[], Tensor]], Tensor]


class AttentionMode(TorchFunctionMode):
    """Lets ``handle`` answer every scaled_dot_product_attention call; all other functions run as they are.

    The self-attention of ``torch.nn.MultiheadAttention`` is one call too.

    Args:
        handle: called with the arguments and with a function that computes what torch makes of them.
    """

    def __init__(self, handle: Handler) -> None:
        super().__init__()
        self.handle = handle

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return self.handle(AttentionArguments(*args, **kwargs), lambda: function(*args, **kwargs))
        if function is F.multi_head_attention_forward and _is_plain(*args, **kwargs):
            return self._multi_head_attention(*args, **kwargs)
        return function(*args, **kwargs)

    def _multi_head_attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim_to_check: int,
        num_heads: int,
        in_proj_weight: Tensor,
        in_proj_bias: Tensor | None,
        bias_k: None,
        bias_v: None,
        add_zero_attn: bool,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        training: bool = True,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """``F.multi_head_attention_forward`` for self-attention, which hides its inner call from function modes."""
        tokens = query.transpose(0, 1)  # [B, N, D]
        joined = F.linear(tokens, in_proj_weight, in_proj_bias).unflatten(-1, (3, num_heads, -1))  # [B, N, 3, H, d]
        query, key, value = joined.permute(2, 0, 3, 1, 4)
        arguments = AttentionArguments(query, key, value, dropout_p=dropout_p if training else 0.0)
        output = self.handle(arguments, arguments.attend).transpose(1, 2).flatten(2)  # [B, N, H·d]
        return F.linear(output, out_proj_weight, out_proj_bias).transpose(0, 1), None


def _is_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    *others: Any,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    **more: Any,
) -> bool:
    """Whether the arguments of ``F.multi_head_attention_forward`` are those of a plain self-attention."""
    absent = (bias_k, bias_v, key_padding_mask, attn_mask)
    return (
        query is key is value
        and query.ndim == 3
        and all(x is None for x in absent)
        and not (add_zero_attn or need_weights or use_separate_proj_weight)
    )
