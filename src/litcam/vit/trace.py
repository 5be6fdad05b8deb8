"""AttentionTrace: what the attention of a Vision Transformer did in one forward, seen without touching the model.

Every current ViT computes attention through ``torch.nn.functional.scaled_dot_product_attention``. A function mode
around the blocks of one forward sees each of those calls, in order; no module is patched and no N×N matrix is built.
A trace can also be entered again: with the prefix tokens alone (:meth:`AttentionTrace.replay`), at the last block
(:meth:`AttentionTrace.resume`) or behind it (:meth:`AttentionTrace.finish`). The image is another one then, so that
logits which are the recorded ones again prove that nothing else of the image reached them.

Knows no explanation method: those say for themselves what they read from a call.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from litcam.errors import UnsupportedModelError
from litcam.logits import class_scores, probabilities
from litcam.vit.balanced import BalancedForward
from litcam.vit.context import eager, evaluating, frozen
from litcam.vit.hooks import Hook, quiet_hooks
from litcam.vit.model import ViT
from litcam.vit.place import prove_place
from litcam.vit.readout import Readout, check_tail, observe_readout
from litcam.vit.sdpa import AttentionArguments, AttentionCall, AttentionMode, Handler
from litcam.vit.tail import agree, foreign_image, run_tail
from litcam.vit.threads import in_this_thread

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
        calls: for each block its attention calls, first block first; detached.
        outputs: their outputs [B, H, N, d], in the graph.
        balance: what more there is of a balanced forward, None of any other.
    """

    leaf: Tensor
    logits: Tensor
    calls: Sequence[Sequence[AttentionCall]]
    outputs: Sequence[Sequence[Tensor]]
    balance: BalancedForward | None = None

    @property
    def all_outputs(self) -> list[Tensor]:
        """The outputs of all calls of all blocks."""
        return [output for of_block in self.outputs for output in of_block]


@dataclass(frozen=True)
class Pass:
    """One run of the Vision Transformer.

    Attributes:
        embedded: the size (H, W) of the images that were cut into patches; None where that could not be seen.
        in_place: whether those were the very images that the module got.
        prefix: [B, P, D], the prefix tokens that entered the first block.
        last_input: what entered the last block.
        last_output: [B, N, D], what left it.
        calls_per_block: how many self-attention calls each block made; parallel blocks make several.
        readings: what each reader made of the attention of every block, first block first; tensors with the batch in
            front.
        precision: the coarsest that it computed in: under autocast, other than that of tokens and logits.
    """

    embedded: tuple[int, int] | None
    in_place: bool
    prefix: Tensor
    last_input: BlockInput
    last_output: Tensor
    calls_per_block: tuple[int, ...]
    readings: Mapping[Hashable, Sequence[Any]]
    precision: torch.dtype


@dataclass
class _Proven:
    """What has been proven of a trace, for all who ask."""

    grid: tuple[int, int] | None = None
    readout: Readout | None = None


@dataclass(frozen=True)
class AttentionTrace:
    """What one forward left behind for explanations.

    Attributes:
        vit: the model.
        module: what was called: ``vit.root``, or ``vit.net`` where the root's own forward was not used.
        images: [B, 3, H, W], as they were given to ``module``.
        logits: [B, C], as ``module`` returned them.
        passed: the run of the Vision Transformer, or the reason why there is none that could be explained.
        hooks: those of the user's forward hooks that changed something; the others are not to see what is run again.
        graph: the forward itself, where it was run with autograd: a :class:`Graph`, or what a method has of its own.
    """

    vit: ViT
    module: nn.Module
    images: Tensor
    logits: Tensor
    passed: Pass | str
    hooks: Collection[Hook] = ()
    graph: object | None = None
    _proven: _Proven = field(default_factory=_Proven, repr=False, compare=False)

    def check(self) -> None:
        """Raise UnsupportedModelError where the tokens of one run do not make up the logits."""
        if isinstance(self.passed, str):
            raise UnsupportedModelError(self.passed)

    @property
    def run(self) -> Pass:
        """The one run of the Vision Transformer.

        Raises:
            UnsupportedModelError: if there were several, or of other images.
        """
        self.check()
        assert isinstance(self.passed, Pass)
        return self.passed

    @property
    def prefix(self) -> Tensor:
        """[B, P, D], the prefix tokens that entered the first block."""
        return self.run.prefix

    @property
    def last_input(self) -> BlockInput:
        """What entered the last block."""
        return self.run.last_input

    @property
    def last_output(self) -> Tensor:
        """[B, N, D], the tokens that left the last block."""
        return self.run.last_output

    @property
    def readings(self) -> Mapping[Hashable, Sequence[Any]]:
        """What each reader made of the attention of every block, first block first."""
        return self.run.readings

    @property
    def parallel(self) -> bool:
        """Whether some block made several self-attention calls."""
        return max(self.run.calls_per_block) > 1

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid, proven to lie on the images as they were given.

        Raises:
            UnsupportedModelError: if a patch does not belong to its part of the image.
        """
        if self._proven.grid is None:
            run = self.run
            tokens = run.last_input.tokens.shape[1]
            with self._apart():
                self._proven.grid = prove_place(self.vit, self.module, self.images, run.embedded, run.in_place, tokens)
        return self._proven.grid

    @property
    def readout(self) -> Readout:
        """The tokens that the logits read; with the proof that they are made of nothing else.

        Raises:
            UnsupportedModelError: if they are.
        """
        if self._proven.readout is None:
            tokens = self.last_output.to(self.vit.dtype)
            with self._apart():
                self._proven.readout = observe_readout(self.vit, self.module, self.images, tokens, self.agrees)
        return self._proven.readout

    def check_features(self) -> None:
        """Raise UnsupportedModelError if the attentions of the last block read no features in common."""
        if self.parallel and self.vit.feature_norm is None:
            raise UnsupportedModelError(
                f"The last block of {type(self.vit.net).__name__} has several attentions, each with a norm of its own: "
                "methods on the features that its attention reads cannot explain it."
            )

    def check_tail(self) -> None:
        """Raise UnsupportedModelError if the logits are made of more than the tokens that left the last block."""
        if self._proven.readout is None:
            tokens = self.last_output.to(self.vit.dtype)
            with self._apart(), torch.no_grad():
                check_tail(self.vit, self.module, self.images, tokens, self.agrees)

    def agrees(self, logits: Tensor) -> bool:
        """Whether logits are the recorded ones, within the rounding of the forward that was recorded."""
        return agree(logits.detach(), self.logits, self.run.precision)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """For forwards that are not the user's: in the precision of the weights, unseen by hooks."""
        exact = torch.autocast(self.images.device.type, enabled=False)
        with evaluating(self.vit.root), quiet_hooks(self.vit.root, self.hooks), exact:
            yield

    def scores(self, logits: Tensor) -> Tensor:
        """The scores of all targets from logits of the module, see :func:`litcam.logits.class_scores`."""
        return class_scores(logits, self.vit.regression)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Their probabilities, see :func:`litcam.logits.probabilities`."""
        return probabilities(logits, self.vit.regression)

    @property
    def reads_only_prefix(self) -> bool:
        """Whether the logits read prefix tokens alone; False also where it cannot be told what they read."""
        try:
            return self.readout.reads_only_first(self.vit.num_prefix_tokens)
        except UnsupportedModelError:
            return False

    def select(self, indices: Tensor) -> "AttentionTrace":
        """The trace of some images of the batch."""
        if len(indices) == len(self.images) and bool((indices.cpu() == torch.arange(len(indices))).all()):
            return self
        indices = indices.to(self.images.device)
        images, logits = self.images[indices], self.logits[indices]
        if isinstance(self.passed, str):
            return replace(self, images=images, logits=logits, graph=None)
        run = self.passed
        passed = replace(
            run,
            prefix=run.prefix[indices],
            last_input=replace(run.last_input, tokens=run.last_input.tokens[indices]),
            last_output=run.last_output[indices],
            readings=_map_tensors(lambda tensor: tensor[indices], run.readings),
        )
        return replace(self, images=images, logits=logits, passed=passed, graph=None)

    def replay(self, outputs: Sequence[Tensor], prefix: Tensor | None = None) -> Tensor | None:
        """Logits [B, C] of the prefix tokens alone, every attention answered by the given outputs [B, H, P, d].

        Where the head reads prefix tokens no other token reaches it, and with the attention outputs given none of them
        needs the others: P tokens go through the net in place of N. To be called with autograd on; the logits are
        differentiable in ``outputs``, and in ``prefix`` where it is given: the recorded one, as a leaf.

        Args:
            outputs: one for each block; those of several calls have their heads one after the other.
            prefix: [B, P, D].

        Returns:
            None where the net cannot be replayed, or where the replayed logits differ from the recorded ones: its way
            from tokens to logits is then another one.
        """
        counts = self.run.calls_per_block
        answers = iter([part for output, n in zip(outputs, counts, strict=True) for part in output.chunk(n, dim=1)])
        prefix = self.prefix.to(outputs[0].dtype) if prefix is None else prefix
        if prefix.shape[1] == 0:
            return None
        with AttentionMode(lambda arguments, attend: next(answers)):
            logits = self._again({0: BlockInput(prefix, (), {})}, skim=True)
        return logits if logits is not None and self.agrees(logits) else None

    def resume(
        self,
        tokens: Tensor,
        handle: Handler | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        skim: bool = True,
    ) -> Tensor | None:
        """Logits [R, C] of tokens [R, N or P, D] that enter the last block in place of the recorded ones.

        To be relied on only once it has led to the recorded logits, by :meth:`agrees` or :meth:`resume_as_recorded`.

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
            hooks.callback(self.vit.blocks[-1].register_forward_pre_hook(in_this_thread(enter)).remove)
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
            if logits is not None and self.agrees(logits):
                return logits, skim
        raise UnsupportedModelError(
            f"{type(self.module).__name__} gives other logits when its last block runs again on the same tokens; "
            "methods that start at the last block cannot explain it."
        )

    def finish(self, tokens: Tensor) -> Tensor | None:
        """Logits [R, C] of tokens [R, n, D] that leave the last block in place of the recorded ones.

        To be relied on only once it has led to the recorded logits, by :meth:`agrees`.

        Args:
            tokens: R may be other than B; n may be P where the head reads prefix tokens alone.

        Returns:
            None where the net does not work that way.
        """
        return run_tail(self.vit, self.module, self.images, lambda entered: tokens)

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
        hook = norm.register_forward_hook(in_this_thread(lambda _, inputs, output: features(output)))
        try:
            yield tokens
        finally:
            hook.remove()

    def _again(self, inputs: Mapping[int, BlockInput], skim: bool) -> Tensor | None:
        """Run the module again, on another image, with these inputs of some blocks.

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
                hooks.callback(block.register_forward_pre_hook(in_this_thread(hook(index)), with_kwargs=True).remove)
            hooks.enter_context(eager())
            hooks.enter_context(frozen(self.module))
            hooks.enter_context(torch.autocast(self.images.device.type, enabled=False))
            image = foreign_image(self.images)
            try:
                logits = self.module(image if skim else image.expand(len(self.images), -1, -1, -1))
            except UnsupportedModelError:
                raise
            except Exception:  # a net that wants all tokens in every block
                return None
        return logits if isinstance(logits, Tensor) and logits.ndim == 2 else None


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
