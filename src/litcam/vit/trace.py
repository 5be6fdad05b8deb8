"""AttentionTrace: what the attention of a Vision Transformer did in one forward, seen without touching the model.

Every current ViT computes attention through ``torch.nn.functional.scaled_dot_product_attention``. A function mode
around the blocks of one forward sees each of those calls, in order; no module is patched and no N×N matrix is built.
A trace can also be entered again: with the prefix tokens alone (:meth:`AttentionTrace.replay`), or at the last block
(:meth:`AttentionTrace.resume`).

Knows no explanation method: those say for themselves what they read from a call.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from litcam.errors import UnsupportedModelError
from litcam.vit.balanced import BalancedForward
from litcam.vit.context import eager, frozen
from litcam.vit.model import ViT
from litcam.vit.sdpa import AttentionArguments, AttentionCall, AttentionMode, Handler

Reader = Callable[[AttentionCall], Any]
Autograd = Literal["full", "cut", "balanced", "balanced cut"]  # cut: along skip connections and MLPs only


@dataclass(frozen=True)
class BlockInput:
    """What entered a block: tokens [B, N, D], and the block's further arguments (rotary positions, say)."""

    tokens: Tensor
    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """A forward with autograd, or the end of one.

    Attributes:
        leaf: where it starts: images [B, 3, H, W], or the features [B, N, D] that the last block's attention reads.
        logits: [B, C].
        calls: the attention calls, first block first; detached.
        outputs: their outputs [B, H, N, d], in the graph.
        balance: what more there is of a balanced forward, None of any other.
    """

    leaf: Tensor
    logits: Tensor
    calls: Sequence[AttentionCall]
    outputs: Sequence[Tensor]
    balance: BalancedForward | None = None


@dataclass(frozen=True)
class AttentionTrace:
    """What one forward left behind for explanations.

    Attributes:
        vit: the model.
        module: what was called: ``vit.root``, or ``vit.net`` where the root's own forward was not used.
        images: [B, 3, H, W], as they were given to ``module``.
        logits: [B, C], as ``module`` returned them.
        prefix: [B, P, D], the prefix tokens that entered the first block.
        last_input: what entered the last block.
        num_calls: how many self-attention calls there were; parallel blocks make several each.
        readings: what each reader made of every attention call, first block first; tensors with the batch in front.
        graph: the forward itself, where it was run with autograd: a :class:`Graph`, or what a method has of its own.
    """

    vit: ViT
    module: nn.Module
    images: Tensor
    logits: Tensor
    prefix: Tensor
    last_input: BlockInput
    num_calls: int
    readings: Mapping[Hashable, Sequence[Any]]
    graph: object | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return self.vit.grid((self.images.shape[-2], self.images.shape[-1]))

    def select(self, indices: Tensor) -> "AttentionTrace":
        """The trace of some images of the batch."""
        if len(indices) == len(self.images) and bool((indices.cpu() == torch.arange(len(indices))).all()):
            return self
        indices = indices.to(self.images.device)
        return replace(
            self,
            images=self.images[indices],
            logits=self.logits[indices],
            prefix=self.prefix[indices],
            last_input=replace(self.last_input, tokens=self.last_input.tokens[indices]),
            readings=_map_tensors(lambda tensor: tensor[indices], self.readings),
            graph=None,
        )

    def replay(self, outputs: Sequence[Tensor], prefix: Tensor | None = None) -> Tensor | None:
        """Logits [B, C] of the prefix tokens alone, every attention call answered by the given outputs [B, H, P, d].

        No token but the prefix tokens reaches the head of a class-token model, and with the attention outputs given
        none of them needs the others: P tokens go through the net in place of N. To be called with autograd on; the
        logits are differentiable in ``outputs``, and in ``prefix`` where it is given: the recorded one, as a leaf.

        Returns:
            None where the net cannot be replayed, or where the replayed logits differ from the recorded ones: its way
            from tokens to logits is then another one.
        """
        if not self.vit.pools_class_token:
            return None
        answers = iter(outputs)
        prefix = self.prefix.to(outputs[0].dtype) if prefix is None else prefix
        with AttentionMode(lambda arguments, attend: next(answers)):
            logits = self._again({0: BlockInput(prefix, (), {})}, skim=True)
        return logits if logits is not None and agree(logits.detach(), self.logits) else None

    def resume(
        self,
        tokens: Tensor,
        handle: Handler | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        skim: bool = True,
    ) -> Tensor | None:
        """Logits [R, C] of tokens [R, N or P, D] that enter the last block in place of the recorded ones.

        To be relied on only once it has led to the recorded logits, by :func:`agree` or :meth:`resume_as_recorded`.

        Args:
            tokens: R may be other than B; with P prefix tokens alone, ``handle`` has to answer the attention.
            handle: answers the last block's attention; None lets torch do it.
            features: applied to the output of ``vit.feature_norm``, which the last block's attention reads; where the
                block has no such norm, to ``tokens``.
            skim: pass the blocks before by one token alone, which costs next to nothing; a net that does not work that
                way takes a whole forward.

        Returns:
            None where the net does not work that way.
        """
        whole = tokens.shape[1] == self.last_input.tokens.shape[1]
        in_last_block = False

        def answer(arguments: AttentionArguments, attend: Callable[[], Tensor]) -> Tensor:
            if not arguments.is_self_attention:  # an attention pool belongs to the head
                return attend()
            if not in_last_block:
                return arguments.query if skim else attend()
            return attend() if handle is None else handle(arguments, attend)

        def enter(*_: Any) -> None:
            nonlocal in_last_block
            in_last_block = True

        with ExitStack() as hooks:
            hooks.callback(self.vit.blocks[-1].register_forward_pre_hook(enter).remove)
            tokens = hooks.enter_context(self._changed(tokens, features))
            hooks.enter_context(AttentionMode(answer))
            last = replace(self.last_input, tokens=tokens) if whole else BlockInput(tokens, (), {})
            inputs = {0: BlockInput(self.last_input.tokens[:, :1], (), {})} if skim else {}
            return self._again({**inputs, len(self.vit.blocks) - 1: last}, skim)

    def resume_as_recorded(
        self, handle: Handler | None = None, features: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, bool]:
        """The recorded logits [B, C] once more, by :meth:`resume` with the recorded tokens; and whether it could skim.

        Raises:
            UnsupportedModelError: if the logits are others.
        """
        tokens = self.last_input.tokens.to(self.vit.dtype)
        for skim in (True, False):
            logits = self.resume(tokens, handle, features, skim)
            if logits is not None and agree(logits.detach(), self.logits):
                return logits, skim
        raise UnsupportedModelError(
            f"{type(self.module).__name__} gives other logits when its last block runs again on the same tokens; "
            "methods that start at the last block cannot explain it."
        )

    def finish(self, tokens: Tensor, skim: bool = True) -> Tensor | None:
        """Logits [R, C] of tokens [R, n, D] that leave the last block in place of the recorded ones.

        To be relied on only once it has led to the recorded logits, by :func:`agree`.

        Args:
            tokens: R may be other than B; n may be P where the head reads prefix tokens alone.
            skim: pass the blocks by one token alone, as in :meth:`resume`.

        Returns:
            None where the net does not work that way.
        """
        inputs = {0: BlockInput(self.last_input.tokens[:1, :1], (), {})} if skim else {}
        with ExitStack() as context:
            hook = self.vit.blocks[-1].register_forward_hook(lambda block, arguments, output: tokens)
            context.callback(hook.remove)
            if skim:
                context.enter_context(AttentionMode(_skim))
            return self._again(inputs, skim)

    def attend_last(self, tokens: Tensor, handle: Handler, features: Callable[[Tensor], Tensor] | None = None) -> None:
        """Run the last block alone on tokens [R, N, D] until its attention has been handled; see :meth:`resume`."""

        def stop(arguments: AttentionArguments, attend: Callable[[], Tensor]) -> Tensor:
            handle(arguments, attend)
            raise _Handled

        last = self.last_input
        with ExitStack() as hooks:
            tokens = hooks.enter_context(self._changed(tokens, features))
            hooks.enter_context(AttentionMode(stop))
            hooks.enter_context(eager())
            hooks.enter_context(suppress(_Handled))
            self.vit.blocks[-1](tokens, *last.arguments, **last.keywords)

    @contextmanager
    def _changed(self, tokens: Tensor, features: Callable[[Tensor], Tensor] | None) -> Iterator[Tensor]:
        """The tokens to enter the last block with, so that its features are changed by a function."""
        norm = self.vit.feature_norm
        if features is None or norm is None:
            yield tokens if features is None else features(tokens)
            return
        hook = norm.register_forward_hook(lambda _, inputs, output: features(output))
        try:
            yield tokens
        finally:
            hook.remove()

    def _again(self, inputs: Mapping[int, BlockInput], skim: bool) -> Tensor | None:
        """Run the module again with these inputs of some blocks.

        With ``skim`` they replace all that comes from the image, so that one image will do, and blocks without an input
        of their own get the tokens alone.
        """

        def hook(index: int) -> Callable[..., Any]:
            def enter(block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
                if index not in inputs:
                    return (arguments[:1], {}) if skim else None
                given = inputs[index]
                # Clones, for inference tensors bar autograd.
                return _map_tensors(Tensor.clone, ((given.tokens, *given.arguments), given.keywords))

            return enter

        with ExitStack() as hooks:
            for index, block in enumerate(self.vit.blocks):
                hooks.callback(block.register_forward_pre_hook(hook(index), with_kwargs=True).remove)
            hooks.enter_context(eager())
            hooks.enter_context(frozen(self.module))
            try:
                logits = self.module(self.images[:1].clone() if skim else self.images.clone())
            except Exception:  # a net that wants all tokens in every block
                return None
        return logits if isinstance(logits, Tensor) and logits.ndim == 2 else None


def _skim(arguments: AttentionArguments, attend: Callable[[], Tensor]) -> Tensor:
    """Answers self-attention at no cost; an attention pool belongs to the head."""
    return arguments.query if arguments.is_self_attention else attend()


class _Handled(Exception):
    """Ends the last block where its attention has been handled."""


def _map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A nesting of tuples, lists and dicts with the function applied to every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [_map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)  # a NamedTuple takes fields
    return value


def agree(replayed: Tensor, recorded: Tensor) -> bool:
    """Whether logits are equal within the rounding of the coarser dtype (of the autocast forward, say)."""
    if replayed.shape != recorded.shape:
        return False
    tolerance = 1e-3 if recorded.dtype in (torch.float32, torch.float64) else 0.1
    error = (replayed.double() - recorded.double()).abs().amax()
    return bool(error <= tolerance * recorded.double().abs().amax()) or not bool(recorded.isfinite().all())
