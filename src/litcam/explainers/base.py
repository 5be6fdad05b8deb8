"""Explainer, what every explanation method is: it turns a trace into heatmaps; and Explanation, what it gives."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
import yaml
from torch import Tensor, nn

from litcam import heatmaps as maps
from litcam.errors import InputError, UnsupportedModelError
from litcam.vit.context import evaluating
from litcam.vit.hooks import quiet_hooks
from litcam.vit.inputs import check_images, check_targets, fitting
from litcam.vit.model import find_vit
from litcam.vit.precision import coarsest
from litcam.vit.recorder import record
from litcam.vit.sdpa import AttentionCall
from litcam.vit.threads import one_at_a_time
from litcam.vit.trace import AttentionTrace, Autograd, Reader


@dataclass(frozen=True)
class Explanation:
    """Heatmaps of a batch, with the forward they explain.

    Attributes:
        heatmaps: float32 [B, gh, gw], or [B, K, gh, gw] for K targets per image; unscaled, as the paper defines them.
            The grid is that of the patches, or the image itself for methods that work on pixels.
        logits: [B, C], from the same forward.
        targets: the classes explained, [B] or [B, K].
    """

    heatmaps: Tensor
    logits: Tensor
    targets: Tensor

    def upsample(self, size: tuple[int, int]) -> Tensor:
        """The maps at ``size`` (H, W): bilinear, each scaled to [0, 1]; a constant map becomes zeros."""
        return maps.upsample(self.heatmaps, size)


class Explainer(ABC):
    """An explanation method for one model. Leaves no trace on it, and explains every image of a batch as if alone.

    Args:
        net: a Vision Transformer, or a module that holds one and returns logits.

    Raises:
        UnsupportedModelError: if there is no Vision Transformer in ``net``.
    """

    name: ClassVar[str]
    class_specific: ClassVar[bool] = True  # whether the map depends on the target
    is_control: ClassVar[bool] = False  # whether the map knows nothing of the model
    small_differences: ClassVar[bool] = False  # whether the map is made of such, which half precision rounds away
    on_pixels: ClassVar[bool] = False  # whether the map has the size of the image, not that of the grid
    needs_tokens: bool = True  # whether it looks into the model; others ask it as a whole

    def __init__(self, net: nn.Module) -> None:
        self.vit = find_vit(net)

    def __call__(self, images: Tensor, targets: Tensor | None = None) -> Explanation:
        """Explain images by one forward.

        Args:
            images: normalised float [B, 3, H, W]; an empty batch has an empty explanation.
            targets: class indices [B], or [B, K] for several maps per image; None explains the predicted class.
                Integers in any form that torch makes a tensor of; see :func:`litcam.vit.inputs.check_targets`.

        Raises:
            InputError: for images or targets that the model cannot take.
            UnsupportedModelError: if the model's attention cannot be seen.
        """
        images = check_images(self.vit, images)
        some = images if len(images) else images.new_zeros(1, *images.shape[1:])  # shows an empty batch's grid, classes
        with one_at_a_time(self.vit.net), fitting(self.vit.root, some):
            return self.explain(self.trace(some).select(torch.arange(len(images))), targets)

    def trace(self, images: Tensor) -> AttentionTrace:
        """The one forward that a call explains."""
        return record(self.vit, images, self.readers, self.autograd)

    def explain(self, trace: AttentionTrace, targets: Tensor | None = None) -> Explanation:
        """Explain a forward that has been recorded with this explainer's :meth:`read` among its readers."""
        self._check_precision(trace.module)
        if self.needs_tokens:
            trace.check()
        targets = check_targets(targets, trace.logits, trace.vit.regression)
        per_image = targets if targets.ndim == 2 else targets[:, None]  # [B, K]
        if not len(per_image):
            size = tuple(trace.images.shape[-2:]) if self.on_pixels else trace.grid
            return Explanation(per_image.new_zeros(*targets.shape, *size, dtype=torch.float32), trace.logits, targets)
        with (
            one_at_a_time(self.vit.net),
            evaluating(self.vit.root),
            quiet_hooks(self.vit.root, trace.hooks),
            torch.no_grad(),
        ):
            heatmaps = self.heatmaps(trace, per_image).float()  # [B, K or 1, gh, gw]
        # Copied where images or classes share one map: torch refuses to write into memory that several elements share.
        heatmaps = heatmaps.expand(-1, per_image.shape[1], -1, -1).contiguous()
        return Explanation(heatmaps if targets.ndim == 2 else heatmaps[:, 0], trace.logits, targets)

    def _check_precision(self, module: nn.Module) -> None:
        """Raise UnsupportedModelError if weights are too coarse for the method."""
        if self.small_differences and (precision := coarsest(module)) in (torch.float16, torch.bfloat16):
            raise UnsupportedModelError(
                f"{self.name} is made of differences that {precision} is too coarse for: explain the net with weights "
                "in single precision (net.float())."
            )

    @property
    def readers(self) -> Mapping[Hashable, Reader]:
        """What a recorder needs for this method: its :meth:`read`, if it has one."""
        return {} if type(self).read is Explainer.read else {self: self.read}

    @property
    def autograd(self) -> Autograd | None:
        """The graph that the method differentiates, if any: a call then records its one forward with it."""
        return None

    def read(self, call: AttentionCall) -> Any:
        """What to keep of a block's attention: tensors with the batch in front, in any nesting of tuples, or None."""
        return None

    @abstractmethod
    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        """Maps [B, K, gh, gw] of the classes [B, K], or [B, 1, gh, gw] from a method that knows no classes."""

    def to_grid(self, trace: AttentionTrace, tokens: Tensor) -> Tensor:
        """Token values [..., N] without the prefix tokens, as patches [..., gh, gw]."""
        return tokens[..., self.vit.num_prefix_tokens :].reshape(*tokens.shape[:-1], *trace.grid)


_registry: dict[str, type[Explainer]] = {}
ExplainerType = TypeVar("ExplainerType", bound=type[Explainer])


def register(name: str) -> Callable[[ExplainerType], ExplainerType]:
    """Class decorator: makes an explainer available under a name."""

    def add(explainer: ExplainerType) -> ExplainerType:
        explainer.name = name
        _registry[name] = explainer
        return explainer

    return add


def list_explainers() -> list[str]:
    """The names of litcam's own explanation methods, sorted; ``captum:<attribution>`` are taken too."""
    return sorted(_registry)


def check_explainer(name: str, options: dict[str, Any] | None = None) -> type[Explainer]:
    """The explainer class of a name, its options checked by name.

    Raises:
        InputError: for an unknown name or option; the message lists the known ones.
    """
    explainer = _find(name)
    known = list(inspect.signature(explainer).parameters)[1:]
    unknown = [option for option in options or {} if option not in known]
    if unknown:
        raise InputError(f"{name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}.")
    return explainer


def _find(name: str) -> type[Explainer]:
    """The explainer class of a name; those of captum are made where they are asked for."""
    if name.startswith("captum:"):
        from litcam.explainers.captum import captum_explainer  # an extra: not everybody has it

        return captum_explainer(name.removeprefix("captum:"))
    if name not in _registry:
        raise InputError(
            f"There is no explainer {name!r}; choose one of {', '.join(list_explainers())}, "
            "or an attribution of captum, such as captum:IntegratedGradients."
        )
    return _registry[name]


def create_explainer(name: str, net: nn.Module, **options: Any) -> Explainer:
    """An explanation method for a model.

    Args:
        name: one of :func:`list_explainers`.
        net: a timm Vision Transformer, or a module that holds one and returns logits.
        options: the method's own, as its docstring lists them.

    Raises:
        InputError: for an unknown name or option, or an option's value out of its range.
        UnsupportedModelError: if there is no Vision Transformer in ``net``.
    """
    return check_explainer(name, options)(net, **options)


def parse_explainer(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options from one word of a command line: ``reciprocam:kernel=dirac:keep_class_token=false``.

    Values are read as YAML. ``captum:IntegratedGradients:n_steps=20`` names an attribution of captum.

    Raises:
        InputError: for an option without a value, and as :func:`check_explainer` does.
    """
    name, *parts = text.split(":")
    if name == "captum" and parts:
        name = f"{name}:{parts.pop(0)}"
    options = parse_options(parts)
    check_explainer(name, options)
    return name, options


def create_explainers(texts: Sequence[str], net: nn.Module) -> dict[str, Explainer]:
    """Explanation methods for a model, by the words of a command line that name them, see :func:`parse_explainer`.

    Raises:
        InputError: as :func:`parse_explainer` and :func:`create_explainer` do; before any method is made for a name.
        UnsupportedModelError: if there is no Vision Transformer in ``net``.
    """
    parsed = {text: parse_explainer(text) for text in texts}
    return {text: create_explainer(name, net, **options) for text, (name, options) in parsed.items()}


def parse_options(words: Sequence[str]) -> dict[str, Any]:
    """Options from words such as ``kernel=dirac``; values are read as YAML.

    Raises:
        InputError: for a word without a value.
    """
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"The option {word!r} has no value; write {word}=value.")
        # YAML 1.1 takes 1e-6, which has no point, for a word.
        options[key] = float(value) if re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value) else yaml.safe_load(value)
    return options


def check_layer(name: str, layer: int | None, layers: int) -> None:
    """Raise InputError unless a net of so many layers has this one."""
    if layer is not None and not -layers <= layer < layers:
        raise InputError(f"{name} is {layer}, but the net has the layers 0 to {layers - 1}.")
