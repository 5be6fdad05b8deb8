"""AttentionTrace: what the attention of a Vision Transformer did in one forward, seen without touching the model.

Every current ViT computes attention through ``torch.nn.functional.scaled_dot_product_attention``. A function mode
around one forward sees each of those calls, in order; no module is patched and no N×N matrix is built. The same way
the calls can be answered from a recording (:meth:`AttentionTrace.replay`) or cut from the graph
(:func:`attention_gradients`).

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

from litcam.errors import InputError, UnsupportedModelError

SUPPORTED = "timm's vit, deit, deit3, dinov2, dinov3, clip, siglip, beit, eva and rope families"


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


@dataclass(frozen=True)
class ViT:
    """A Vision Transformer inside a module, as litcam sees it.

    Attributes:
        root: what is called with images and returns logits: the net itself, or a module that holds it.
        net: the timm model, with ``blocks``, ``patch_embed`` and ``num_prefix_tokens``.
    """

    root: nn.Module
    net: Any

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patch tokens: class, distillation and register tokens."""
        return int(self.net.num_prefix_tokens)

    @property
    def pools_class_token(self) -> bool:
        """Whether the head reads prefix tokens alone, and not the patch tokens."""
        attention_pool = getattr(self.net, "attn_pool", None)
        return self.num_prefix_tokens > 0 and attention_pool is None and getattr(self.net, "global_pool", "") == "token"

    @property
    def readout(self) -> slice:
        """The tokens that the head reads: class token (and distillation token), or all patch tokens."""
        if not self.pools_class_token:
            return slice(self.num_prefix_tokens, None)
        return slice(0, 2 if hasattr(self.net, "dist_token") else 1)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of an image of (H, W) pixels."""
        embed = self.net.patch_embed
        if hasattr(embed, "dynamic_feat_size"):
            rows, columns = embed.dynamic_feat_size(image_size)
        else:
            rows, columns = embed.grid_size
        return int(rows), int(columns)

    def check_images(self, images: Tensor) -> None:
        """Raise InputError unless images are finite floats [B, 3, H, W] of a size that the net takes."""
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            got = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images have to be a normalised float tensor [B, 3, H, W], not {got}.")
        self.check_size(images)
        finite = images.isfinite().flatten(1).all(1)
        if not finite.all():
            bad = (~finite).nonzero().flatten().tolist()
            raise InputError(f"images hold NaN or infinite pixels at batch index {', '.join(map(str, bad[:8]))}.")

    def check_size(self, images: Tensor) -> None:
        """Raise InputError unless images [..., H, W] are of a size that the net takes."""
        embed = self.net.patch_embed
        expected = getattr(embed, "img_size", None)
        size = tuple(images.shape[-2:])
        if expected is not None and getattr(embed, "strict_img_size", True) and size != tuple(expected):
            raise InputError(
                f"images are {size[0]} by {size[1]} pixels, but the net takes {expected[0]} by {expected[1]}: "
                "resize them, or create the net with another img_size."
            )


def find_vit(module: nn.Module) -> ViT:
    """The first Vision Transformer in a module, from the outside in.

    Raises:
        UnsupportedModelError: if there is none; the message says what is supported.
    """
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(f"net has to be a torch.nn.Module, not {type(module).__name__}.")
    root = getattr(module, "_orig_mod", module)  # what torch.compile(net) wraps
    for candidate in root.modules():
        if all(hasattr(candidate, name) for name in ("blocks", "patch_embed", "num_prefix_tokens")):
            return ViT(root, candidate)
    raise UnsupportedModelError(
        f"{type(root).__name__} holds no Vision Transformer with global attention in every block; "
        f"supported are {SUPPORTED}."
    )


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
        with _AttentionMode(lambda arguments, attend: next(answers)):
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
        self._mode.enter_context(_AttentionMode(self._observe))

    def _catch_prefix(self, block: nn.Module, arguments: tuple[Any, ...]) -> None:
        if self._mode is not None:
            self._prefix = arguments[0][:, : self.vit.num_prefix_tokens].detach().clone()
            self._num_tokens = arguments[0].shape[1]

    def _observe(self, arguments: "_Arguments", attend: Callable[[], Tensor]) -> Tensor:
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


@dataclass(frozen=True)
class AttentionGradient:
    """An attention call inside a graph, and the gradients of some class logits at its output.

    Attributes:
        call: the call; its tensors are detached.
        gradients: [K, B, H, N, d], ∂y_c/∂output for each of K classes.
    """

    call: AttentionCall
    gradients: Tensor


def attention_gradients(trace: AttentionTrace, targets: Tensor, cut: bool) -> list[AttentionGradient]:
    """Gradients of class logits at the output of every attention call, by one more forward and K backward passes.

    Args:
        trace: says which module and which images.
        targets: class indices [B, K].
        cut: whether the input of every attention is cut from the graph, so that gradients run along the skip
            connections and MLPs only (equations 3 to 7 of the AGCAM paper); otherwise the ordinary gradient.

    Returns:
        One entry per block, first block first.
    """
    calls: list[AttentionCall] = []

    def attend_in_graph(arguments: "_Arguments", attend: Callable[[], Tensor]) -> Tensor:
        if not arguments.is_self_attention:  # an attention pool belongs to the head
            return attend()
        output = arguments.detached().attend() if cut else attend()
        if not output.requires_grad:
            output.requires_grad_()
        calls.append(arguments.call(output))
        return output

    with autograd_anywhere(trace.images.device.type), eager():
        images = trace.images.clone().to(_parameter_dtype(trace.vit.net)).requires_grad_(not cut)
        with _AttentionMode(attend_in_graph):
            logits = trace.module(images)
        outputs = [call.output for call in calls]
        gradients = class_gradients(logits, targets, outputs)
    return [AttentionGradient(_detached(call), gradient) for call, gradient in zip(calls, gradients, strict=True)]


def _detached(call: AttentionCall) -> AttentionCall:
    """The call with tensors that belong to no graph."""
    bias = None if call.bias is None else call.bias.detach()
    return AttentionCall(
        call.query.detach(), call.key.detach(), call.value.detach(), bias, call.scale, call.output.detach()
    )


def class_gradients(logits: Tensor, targets: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """∂y_c/∂input for the classes [B, K] of each image: one [K, …] per input. The graph is freed."""
    targets = targets.clone()  # they may be inference tensors, which autograd cannot keep
    per_class = []
    for position in range(targets.shape[1]):
        chosen = logits.gather(1, targets[:, position : position + 1]).sum()  # images do not mix: a sum separates
        last = position == targets.shape[1] - 1
        gradients = torch.autograd.grad(chosen, inputs, retain_graph=not last, allow_unused=True)
        per_class.append([torch.zeros_like(x) if g is None else g for g, x in zip(gradients, inputs, strict=True)])
    return [torch.stack(gradients) for gradients in zip(*per_class, strict=True)]


@contextmanager
def autograd_anywhere(device_type: str) -> Iterator[None]:
    """Autograd in full precision, also inside no_grad, inference_mode and autocast."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device_type, enabled=False):
        yield


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode and without activation checkpointing; every flag is restored on every path."""
    training = {child: child.training for child in module.modules() if child.training}
    checkpointing = [child for child in module.modules() if getattr(child, "grad_checkpointing", False) is True]
    try:
        for child in training:
            child.training = False
        for child in checkpointing:
            child.grad_checkpointing = False  # type: ignore[assignment]
        yield
    finally:
        for child in training:
            child.training = True
        for child in checkpointing:
            child.grad_checkpointing = True  # type: ignore[assignment]


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules as they were written: compiled code shows neither hooks nor attention calls."""
    with torch.compiler.set_stance("force_eager"):
        yield


def check_attention(vit: ViT, calls: int) -> None:
    """Raise UnsupportedModelError unless every block made a self-attention call."""
    blocks = len(vit.net.blocks)
    if calls and calls % blocks == 0:
        return
    raise UnsupportedModelError(
        f"{type(vit.net).__name__} has {blocks} blocks but made {calls} self-attention calls through torch's "
        f"scaled_dot_product_attention, so it cannot be explained: supported are {SUPPORTED}, with fused attention on "
        "(timm.layers.set_fused_attn(True) before the net is created)."
    )


def _check_logits(vit: ViT, logits: Any) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UnsupportedModelError(f"{type(vit.root).__name__} has to return logits [B, C], but returned {got}.")


def _parameter_dtype(net: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in net.parameters() if parameter.is_floating_point())


@dataclass(frozen=True)
class _Arguments:
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

    def detached(self) -> "_Arguments":
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


class _AttentionMode(TorchFunctionMode):
    """Lets ``handle`` answer every scaled_dot_product_attention call; all other functions run as they are."""

    def __init__(self, handle: Callable[[_Arguments, Callable[[], Tensor]], Tensor]) -> None:
        super().__init__()
        self.handle = handle

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not F.scaled_dot_product_attention:
            return function(*args, **kwargs)
        return self.handle(_Arguments(*args, **kwargs), lambda: function(*args, **kwargs))
