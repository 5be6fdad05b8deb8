"""Recording: what a forward of a model did becomes an AttentionTrace."""

from collections.abc import Callable, Hashable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from litcam.errors import UnsupportedModelError
from litcam.vit.balanced import balancing
from litcam.vit.context import autograd_anywhere, eager, evaluating, frozen
from litcam.vit.model import ViT
from litcam.vit.patches import PatchEmbeddingMode
from litcam.vit.precision import in_precision_of
from litcam.vit.sdpa import AttentionArguments, AttentionCall, AttentionMode
from litcam.vit.trace import AttentionTrace, Autograd, BlockInput, Graph, Reader


class AttentionRecorder:
    """While active, turns every forward of the model into an :class:`AttentionTrace`; the latest is kept.

    Works by hooks that are gone when the context ends, on every path, and that act only between the model's first and
    last block.

    Args:
        vit: the model.
        readers: called with each self-attention call as it happens; what they return is kept, so that they decide how
            much memory a trace takes.
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
        self._complete = False  # whether the last block has ended since the first one began

    def __enter__(self) -> "AttentionRecorder":
        net, root, blocks = self.vit.net, self.vit.root, self.vit.blocks
        callers = [net] if root is net else [net, root]
        hooks = [
            blocks[0].register_forward_pre_hook(self._begin, with_kwargs=True),
            blocks[-1].register_forward_pre_hook(self._catch_last_input, with_kwargs=True),
            blocks[-1].register_forward_hook(self._complete_blocks),
            net.register_forward_pre_hook(self._check_size, with_kwargs=True),
            # Leaves the mode also when the forward raises.
            *(caller.register_forward_hook(self._end, with_kwargs=True, always_call=True) for caller in callers),
        ]
        for hook in hooks:
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._leave_mode()
        self._hooks.close()

    def _check_size(self, net: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        images = _first(arguments, keywords)
        if isinstance(images, Tensor):
            self.vit.check_size(images)

    def _begin(self, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.trace = None
        self.forwards += 1
        self._complete = False
        self._prefix = _first(arguments, keywords)[:, : self.vit.num_prefix_tokens].detach().clone()
        self._readings: dict[Hashable, list[Any]] = {key: [] for key in self.readers}
        self._num_calls = 0
        self._calls: list[AttentionCall] = []
        self._outputs: list[Tensor] = []
        self._leave_mode()
        self._mode = ExitStack()
        self._mode.enter_context(AttentionMode(self._observe))

    def _catch_last_input(self, block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        others = dict(keywords)
        tokens = arguments[0] if arguments else others.pop(next(iter(others)))
        self._last_input = BlockInput(tokens.detach(), arguments[1:], others)

    def _observe(self, arguments: AttentionArguments, attend: Callable[[], Tensor]) -> Tensor:
        if not arguments.is_self_attention:
            return attend()
        cut = self.autograd in ("cut", "balanced cut")
        output = arguments.detached().attend() if cut else attend()
        self._num_calls += 1
        if self.autograd is not None:
            if not output.requires_grad:
                output.requires_grad_()
            self._calls.append(arguments.detached().call(output.detach()))
            self._outputs.append(output)
        with torch.no_grad():
            call = arguments.call(output)
            for key, reader in self.readers.items():
                self._readings[key].append(reader(call))
        return output

    def _complete_blocks(self, block: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._leave_mode()
        self._complete = True

    def _end(self, module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], logits: Any) -> None:
        """Make a trace of what the net returned, and replace it by one of what the root returned."""
        self._leave_mode()
        # Under DDP Lightning sends whole steps through the root's forward: their arguments are batches, not images.
        images = _first(arguments, keywords)
        ran_on_images = isinstance(images, Tensor) and images.ndim == 4
        if not (self._complete and ran_on_images and isinstance(logits, Tensor) and logits.ndim == 2):
            return
        self.vit.check_attention(self._num_calls)
        graph = None if self.autograd is None else Graph(images, logits, self._calls, self._outputs)
        self.trace = AttentionTrace(
            vit=self.vit,
            module=module,
            images=images.detach(),
            logits=logits.detach(),
            prefix=self._prefix,
            last_input=self._last_input,
            num_calls=self._num_calls,
            readings=self._readings,
            graph=graph,
        )

    def _leave_mode(self) -> None:
        if self._mode is not None:
            self._mode.close()
            self._mode = None


def _first(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The first argument of a call, however it was given."""
    return next(iter((*arguments, *keywords.values())), None)


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
        recorder = context.enter_context(AttentionRecorder(vit, readers, autograd))
        context.enter_context(evaluating(vit.root))
        context.enter_context(eager())
        if autograd is None:
            context.enter_context(torch.no_grad())
        else:
            context.enter_context(autograd_anywhere(images.device.type))
            context.enter_context(frozen(vit.root))
            context.enter_context(PatchEmbeddingMode())
            images = images.detach().clone().requires_grad_(autograd != "cut")
        balance = context.enter_context(balancing(vit)) if autograd in ("balanced", "balanced cut") else None
        logits = (forward or vit.root)(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(f"{type(vit.root).__name__} has to return logits [B, C], but returned {got}.")
    if recorder.trace is None:
        raise UnsupportedModelError(f"{type(vit.root).__name__} did not run its {type(vit.net).__name__}.")
    if balance is None:
        return recorder.trace
    assert isinstance(recorder.trace.graph, Graph)  # as asked for
    return replace(recorder.trace, graph=replace(recorder.trace.graph, balance=balance))
