"""Recording: what a forward of a model did becomes an AttentionTrace."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from litcam.errors import UnsupportedModelError
from litcam.vit.balanced import balancing
from litcam.vit.context import autograd_anywhere, eager, evaluating, frozen, unbroken
from litcam.vit.hooks import first_argument, watching_hooks, without_backward_hooks
from litcam.vit.model import SUPPORTED, ViT
from litcam.vit.patches import PatchEmbeddingMode
from litcam.vit.precision import coarsest, in_precision_of
from litcam.vit.sdpa import AttentionArguments, AttentionCall, AttentionMode, merge
from litcam.vit.threads import in_this_thread
from litcam.vit.trace import AttentionTrace, Autograd, BlockInput, Graph, Pass, Reader


class AttentionRecorder:
    """While active, turns every forward of the model into an :class:`AttentionTrace`; the latest is kept.

    Works by hooks that are gone when the context ends, on every path, that act in the thread which entered it, and only
    between the model's first and last block.

    Args:
        vit: the model.
        readers: called with the self-attention of each block as it happens; what they return is kept, so that they
            decide how much memory a trace takes.
        autograd: keep the graph of a forward that runs with autograd; ``"cut"`` and ``"balanced cut"`` detach the input
            of every attention.
    """

    def __init__(self, vit: ViT, readers: Mapping[Hashable, Reader], autograd: Autograd | None = None) -> None:
        self.vit = vit
        self.readers = readers
        self.autograd = autograd
        self.trace: AttentionTrace | None = None
        self.forwards = 0  # so far
        self._hooks = ExitStack()
        self._mode: ExitStack | None = None  # holds the function mode while the blocks run
        self._calls_open: dict[nn.Module, list[_Open]] = {}  # calls of net and root that have begun
        self._run = _Run()

    def __enter__(self) -> "AttentionRecorder":
        net, root, blocks = self.vit.net, self.vit.root, self.vit.blocks
        callers = [net] if root is net else [net, root]
        embedding = self.vit.embedding
        self._watched = self._hooks.enter_context(watching_hooks(root))  # before there are hooks of litcam's own
        hooks = [
            *(caller.register_forward_pre_hook(in_this_thread(self._open), with_kwargs=True) for caller in callers),
            blocks[0].register_forward_pre_hook(in_this_thread(self._begin), with_kwargs=True),
            *(block.register_forward_hook(in_this_thread(self._end_block)) for block in blocks),
            blocks[-1].register_forward_pre_hook(in_this_thread(self._catch_last_input), with_kwargs=True),
            blocks[-1].register_forward_hook(in_this_thread(self._complete)),
            # Leaves the mode also when the forward raises.
            *(
                caller.register_forward_hook(in_this_thread(self._end), with_kwargs=True, always_call=True)
                for caller in callers
            ),
            *(
                other.blocks[0].register_forward_pre_hook(in_this_thread(self._meet), with_kwargs=True)
                for other in self.vit.others
            ),
        ]
        if embedding is not None:
            hooks.append(embedding.register_forward_pre_hook(in_this_thread(self._embed), with_kwargs=True))
        for hook in hooks:
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._leave_mode()
        self._hooks.close()

    def _open(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self._calls_open.setdefault(module, []).append(_Open(first_argument(arguments, keywords)))

    def _embed(self, embedding: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        """See which images are cut into patches, for every call that is under way."""
        embedded = first_argument(arguments, keywords)
        if not isinstance(embedded, Tensor) or embedded.ndim != 4:
            return
        self.vit.check_size(embedded)
        for call in self._all_open():
            call.embedded = (embedded.shape[-2], embedded.shape[-1])
            call.in_place = isinstance(call.images, Tensor) and _are_the_same(embedded, call.images)

    def _all_open(self) -> list["_Open"]:
        return [call for calls in self._calls_open.values() for call in calls]

    def _meet(self, *_: Any) -> None:
        """Another Vision Transformer runs."""
        for call in self._all_open():
            call.others += 1

    def _begin(self, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.trace = None
        self.forwards += 1
        for call in self._all_open():
            call.runs += 1
        tokens = first_argument(arguments, keywords)
        self._run = _Run(tokens[:, : self.vit.num_prefix_tokens].detach().clone(), {key: [] for key in self.readers})
        self._leave_mode()
        self._mode = ExitStack()
        self._mode.enter_context(AttentionMode(self._observe))

    def _catch_last_input(self, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        others = dict(keywords)
        tokens = arguments[0] if arguments else others.pop(next(iter(others)))
        self._run.last_input = BlockInput(tokens.detach(), arguments[1:], others)

    def _observe(self, arguments: AttentionArguments, attend: Callable[[], Tensor]) -> Tensor:
        if not arguments.is_self_attention:
            return attend()
        cut = self.autograd in ("cut", "balanced cut")
        output = arguments.detached().attend() if cut else attend()
        if self.autograd is not None and not output.requires_grad:
            output.requires_grad_()
        self._run.computed_in.add(output.dtype)
        self._run.pending.append((arguments.detached(), output))
        return output

    def _end_block(self, block: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        """Read the attention of a block: what all its calls did, as one."""
        run = self._run
        pending, run.pending = run.pending, []
        run.calls_per_block.append(len(pending))
        if self.autograd is not None:
            run.calls.append([arguments.call(output.detach()) for arguments, output in pending])
            run.outputs.append([output for _, output in pending])
        if pending and self.readers:
            with torch.no_grad():
                call = merge([arguments.call(output.detach()) for arguments, output in pending])
                for key, reader in self.readers.items():
                    run.readings[key].append(reader(call))

    def _complete(self, block: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._leave_mode()
        if isinstance(output, Tensor):
            self._run.last_output = output.detach()

    def _end(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], logits: Any) -> None:
        """Make a trace of what the net returned, and replace it by one of what the root returned."""
        self._leave_mode()
        opened = self._calls_open.get(module)
        call = opened.pop() if opened else _Open(None)
        # Under DDP Lightning sends whole steps through the root's forward: their arguments are batches, not images.
        images = first_argument(arguments, keywords)
        ran_on_images = isinstance(images, Tensor) and images.ndim == 4
        if not ran_on_images or not isinstance(logits, Tensor) or logits.ndim != 2:
            return
        self.trace = AttentionTrace(
            vit=self.vit,
            module=module,
            images=images.detach(),
            logits=logits.detach(),
            passed=self._refusal(module, images, call) or self._run.as_seen(call, module, logits),
            hooks=frozenset(self._watched.changing),
            graph=None if self.autograd is None else Graph(images, logits, self._run.calls, self._run.outputs),
        )

    def _refusal(self, module: nn.Module, images: Tensor, call: "_Open") -> str | None:
        """Why a call of the module can have no map of its tokens, if it cannot."""
        run, name, net = self._run, type(module).__name__, type(self.vit.net).__name__
        count = len(run.last_input.tokens) if run.last_input is not None else 0
        if not call.runs:
            reason = f"did not run its {net}" + (" but another one" if call.others else "")
        elif call.others:
            reason = f"runs {call.others + call.runs} Vision Transformers"
        elif call.runs != 1:
            reason = f"runs its {net} {call.runs} times in one forward"
        elif count != len(images):
            reason = f"gives its {net} {count} images for {len(images)}"
        elif run.last_output is None:
            reason = f"runs blocks of its {net} that return no tokens [B, N, D]"
        elif not all(run.calls_per_block) or len(run.calls_per_block) != len(self.vit.blocks):
            return not_seen(self.vit, run.calls_per_block)
        else:
            return None
        return (
            f"{name} {reason}, and the tokens of one run do not make up its logits: explain the {net} by itself, or a "
            "module that runs it once on each image; rise and saliency take any module."
        )

    def _leave_mode(self) -> None:
        if self._mode is not None:
            self._mode.close()
            self._mode = None


@dataclass
class _Open:
    """A call of net or root that has begun: its images, and what has been seen since."""

    images: Any
    runs: int = 0
    others: int = 0
    embedded: tuple[int, int] | None = None
    in_place: bool = False


@dataclass
class _Run:
    """A run of the Vision Transformer, as far as it has come; see :class:`Pass` and :class:`Graph`."""

    prefix: Tensor | None = None
    readings: dict[Hashable, list[Any]] = field(default_factory=dict)
    last_input: BlockInput | None = None
    last_output: Tensor | None = None
    calls_per_block: list[int] = field(default_factory=list)
    calls: list[list[AttentionCall]] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)
    pending: list[tuple[AttentionArguments, Tensor]] = field(default_factory=list)  # of the block that runs
    computed_in: set[torch.dtype] = field(default_factory=set)

    def as_seen(self, call: _Open, module: nn.Module, logits: Tensor) -> Pass:
        """What a trace keeps of it."""
        assert self.prefix is not None  # the last block has ended
        assert self.last_input is not None
        assert self.last_output is not None
        return Pass(
            call.embedded,
            call.in_place,
            self.prefix,
            self.last_input,
            self.last_output,
            tuple(self.calls_per_block),
            self.readings,
            coarsest(module, logits, *self.computed_in),
        )


def not_seen(vit: ViT, calls_per_block: Sequence[int]) -> str:
    """What to say where blocks made no self-attention call."""
    return (
        f"{type(vit.net).__name__} has {len(vit.blocks)} blocks but made {sum(calls_per_block)} self-attention calls "
        f"through torch's scaled_dot_product_attention, so it cannot be explained: supported are {SUPPORTED}, with "
        "fused attention on (timm.layers.set_fused_attn(True) before the net is created; attn_implementation='sdpa' in "
        "transformers)."
    )


def _are_the_same(embedded: Tensor, images: Tensor) -> bool:
    if embedded.shape != images.shape or embedded.device != images.device:
        return False
    if embedded.data_ptr() == images.data_ptr() and embedded.stride() == images.stride():
        return True
    return bool(torch.equal(embedded, images.to(embedded.dtype)))


def record(
    vit: ViT,
    images: Tensor,
    readers: Mapping[Hashable, Reader],
    autograd: Autograd | None = None,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> AttentionTrace:
    """The trace of one forward of ``vit.root`` in evaluation mode.

    Args:
        vit: the model.
        images: normalised float [B, 3, H, W].
        readers: see :class:`AttentionRecorder`.
        autograd: run it with autograd and keep the graph: ``"full"`` from the images on, ``"cut"`` with the input of
            every attention detached, each with ``"balanced"`` by the gradients of :mod:`litcam.vit.balanced`. None runs
            it without gradients.
        forward: calls ``vit.root`` with images, where more than the trace is wanted of it.

    Raises:
        UnsupportedModelError: if the forward makes no self-attention call per block, or returns no logits [B, C].
    """
    images = images if autograd is None else in_precision_of(vit.root, images)
    with ExitStack() as context:
        context.enter_context(without_backward_hooks())
        recorder = context.enter_context(AttentionRecorder(vit, readers, autograd))
        context.enter_context(evaluating(vit.root))
        context.enter_context(eager())
        if autograd is None:
            context.enter_context(torch.no_grad())
        else:
            context.enter_context(autograd_anywhere(images.device.type))
            context.enter_context(frozen(vit.root))
            context.enter_context(unbroken(vit.root))
            context.enter_context(PatchEmbeddingMode())
            images = images.detach().clone().requires_grad_(autograd != "cut")
        balance = context.enter_context(balancing(vit)) if autograd in ("balanced", "balanced cut") else None
        logits = (forward or vit.root)(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(f"{type(vit.root).__name__} has to return logits [B, C], but returned {got}.")
    assert recorder.trace is not None  # it has had images
    if balance is None:
        return recorder.trace
    assert isinstance(recorder.trace.graph, Graph)  # as asked for
    return replace(recorder.trace, graph=replace(recorder.trace.graph, balance=balance))
