"""AttentionTrace: what the attention of a Vision Transformer did in one forward, seen without touching the model.

Every current ViT computes attention through ``torch.nn.functional.scaled_dot_product_attention``. A function mode
around one forward sees each of those calls, in order; no module is patched and no N×N matrix is built. The same way
the calls can be answered from a recording (:meth:`AttentionTrace.replay`) or cut from the graph
(:mod:`litcam.gradients`).

Knows no explanation method: those say for themselves what they read from a call.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from litcam.errors import UnsupportedModelError
from litcam.vit import ViT, check_attention


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

    def scores(self, rows: slice = slice(None)) -> Tensor:
        """Scores before the softmax of the chosen query rows, S = q·kᵀ·scale + bias: float32 [B, H, R, N]."""
        scores = self.query[:, :, rows].float() @ self.key.float().transpose(-2, -1) * self.scale
        if self.bias is None:
            return scores
        bias = self.bias if self.bias.shape[-2] == 1 else self.bias[..., rows, :]
        return scores + bias.float()

    def weights(self, rows: slice = slice(None)) -> Tensor:
        """Attention A = softmax(S) of the chosen query rows: float32 [B, H, R, N]."""
        return self.scores(rows).softmax(-1)


Reader = Callable[[AttentionCall], Any]


@dataclass(frozen=True)
class AttentionTrace:
    """What one forward left behind for explanations.

    Attributes:
        vit: the model.
        module: what was called: ``vit.root``, or ``vit.net`` where the root's own forward was not used.
        images: [B, 3, H, W], as they were given to ``module``.
        logits: [B, C], as ``module`` returned them.
        prefix: [B, P, D], the prefix tokens that entered the first block.
        readings: what each reader made of every attention call, first block first; tensors with the batch in front.
    """

    vit: ViT
    module: nn.Module
    images: Tensor
    logits: Tensor
    prefix: Tensor
    readings: Mapping[Hashable, Sequence[Any]]

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
            readings={key: [_rows(reading, indices) for reading in layers] for key, layers in self.readings.items()},
        )

    def replay(self, outputs: Sequence[Tensor]) -> Tensor | None:
        """Logits [B, C] of the prefix tokens alone, every attention call answered by the given outputs [B, H, P, d].

        No token but the prefix tokens reaches the head of a class-token model, and with the attention outputs given
        none of them needs the others: P tokens go through the net in place of N. To be called with autograd on; the
        logits are differentiable in ``outputs``.

        Returns:
            None where the net cannot be replayed, or where the replayed logits differ from the recorded ones: its way
            from tokens to logits is then another one.
        """
        net = self.vit.net
        if not self.vit.pools_class_token or not hasattr(net, "forward_head"):
            return None
        answers = iter(outputs)
        tokens = self.prefix.clone().to(outputs[0].dtype)  # [B, P, D]; a clone, for inference tensors bar autograd
        with AttentionMode(lambda arguments, attend: next(answers)):
            for block in net.blocks:
                tokens = block(tokens)
            logits: Tensor = net.forward_head(net.norm(tokens))
        return logits if agree(logits.detach(), self.logits) else None


def _rows(reading: Any, indices: Tensor) -> Any:
    """The rows of every tensor of a reading."""
    if isinstance(reading, Tensor):
        return reading[indices]
    if isinstance(reading, tuple):
        parts = [_rows(part, indices) for part in reading]
        return type(reading)(*parts) if hasattr(reading, "_fields") else tuple(parts)  # a NamedTuple takes its fields
    return reading


def agree(replayed: Tensor, recorded: Tensor) -> bool:
    """Whether logits are equal within the rounding of the coarser dtype (of the autocast forward, say)."""
    if replayed.shape != recorded.shape:
        return False
    tolerance = 1e-3 if recorded.dtype in (torch.float32, torch.float64) else 0.1
    error = (replayed.double() - recorded.double()).abs().amax()
    return bool(error <= tolerance * recorded.double().abs().amax()) or not bool(recorded.isfinite().all())


class AttentionRecorder:
    """While active, turns every forward of the model into an :class:`AttentionTrace`; the latest is kept.

    Works by hooks that are gone when the context ends, on every path, and that act only during the net's own forward.

    Args:
        vit: the model.
        readers: called with each self-attention call as it happens; what they return is kept, so that they decide how
            much memory a trace takes.
    """

    def __init__(self, vit: ViT, readers: Mapping[Hashable, Reader]) -> None:
        self.vit = vit
        self.readers = readers
        self.trace: AttentionTrace | None = None
        self.forwards = 0  # so far
        self._hooks = ExitStack()
        self._mode: ExitStack | None = None  # holds the function mode while the net's forward runs

    def __enter__(self) -> "AttentionRecorder":
        net, root = self.vit.net, self.vit.root
        hooks = [
            net.register_forward_pre_hook(self._begin, with_kwargs=True),
            net.blocks[0].register_forward_pre_hook(self._catch_prefix),
            # Leaves the mode also when the forward raises.
            net.register_forward_hook(self._end, with_kwargs=True, always_call=True),
        ]
        if root is not net:
            hooks.append(root.register_forward_hook(self._widen, with_kwargs=True))
        for hook in hooks:
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._leave_mode()
        self._hooks.close()

    def _begin(self, net: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        self.trace = None
        self.forwards += 1
        self.vit.check_size(_first(arguments, keywords))
        self._prefix: Tensor | None = None
        self._readings: dict[Hashable, list[Any]] = {key: [] for key in self.readers}
        self._calls = 0
        self._leave_mode()
        self._mode = ExitStack()
        self._mode.enter_context(AttentionMode(self._observe))

    def _catch_prefix(self, block: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self._mode is not None:
            self._prefix = arguments[0][:, : self.vit.num_prefix_tokens].detach().clone()
            self._num_tokens = arguments[0].shape[1]

    def _observe(self, arguments: "AttentionArguments", attend: Callable[[], Tensor]) -> Tensor:
        output = attend()
        if arguments.is_self_attention:
            self._calls += 1
            with torch.no_grad():
                call = arguments.call(output)
                for key, reader in self.readers.items():
                    self._readings[key].append(reader(call))
        return output

    def _end(self, net: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], logits: Any) -> None:
        self._leave_mode()
        if logits is None:  # the forward raised
            return
        check_attention(self.vit, self._calls)
        assert self._prefix is not None  # the first block ran, for its attention was seen
        images = _first(arguments, keywords)
        self.trace = AttentionTrace(self.vit, net, images.detach(), logits.detach(), self._prefix, dict(self._readings))

    def _widen(self, root: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], logits: Any) -> None:
        """Take the root's images and logits for the net's, where its own forward was what ran."""
        # Under DDP Lightning sends whole steps through the root's forward: their arguments are batches, not images.
        images = _first(arguments, keywords)
        ran_on_images = isinstance(images, Tensor) and images.ndim == 4
        if self.trace is not None and ran_on_images and isinstance(logits, Tensor) and logits.ndim == 2:
            self.trace = replace(self.trace, module=root, images=images.detach(), logits=logits.detach())

    def _leave_mode(self) -> None:
        if self._mode is not None:
            self._mode.close()
            self._mode = None


def _first(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The first argument of a call, however it was given."""
    return next(iter((*arguments, *keywords.values())), None)


def record(vit: ViT, images: Tensor, readers: Mapping[Hashable, Reader]) -> AttentionTrace:
    """The trace of one forward of ``vit.root``, without gradients.

    Raises:
        UnsupportedModelError: if the forward makes no self-attention call per block, or returns no logits [B, C].
    """
    with AttentionRecorder(vit, readers) as recorder, torch.no_grad(), eager():
        logits = vit.root(images)
    _check_logits(vit, logits)
    if recorder.trace is None:
        raise UnsupportedModelError(f"{type(vit.root).__name__} did not call its {type(vit.net).__name__}.")
    return recorder.trace


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules as they were written: compiled code shows neither hooks nor attention calls."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _check_logits(vit: ViT, logits: Any) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(f"{type(vit.root).__name__} has to return logits [B, C], but returned {got}.")


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
        return replace(self, query=self.query.detach(), key=self.key.detach(), value=self.value.detach())

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


class AttentionMode(TorchFunctionMode):
    """Lets ``handle`` answer every scaled_dot_product_attention call; all other functions run as they are."""

    def __init__(self, handle: Callable[[AttentionArguments, Callable[[], Tensor]], Tensor]) -> None:
        super().__init__()
        self.handle = handle

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        return self.handle(AttentionArguments(*args, **kwargs), lambda: function(*args, **kwargs))
