"""The attribution methods of captum behind litcam's interface. captum is imported when one is asked for."""

import importlib
import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partialmethod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from litcam.errors import InputError, check_at_least, check_choice
from litcam.explainers.base import Explainer
from litcam.vit.context import autograd_anywhere, eager, unbroken
from litcam.vit.precision import in_precision_of
from litcam.vit.sdpa import full
from litcam.vit.trace import AttentionTrace

SUPPORTED = (
    "FeatureAblation",
    "GradientShap",
    "InputXGradient",
    "IntegratedGradients",
    "KernelShap",
    "Lime",
    "Occlusion",
    "Saliency",
    "ShapleyValueSampling",
)
_ONLY_THE_GRADIENT = "its rules know neither GELU nor LayerNorm nor fused attention, so that the plain gradient is left"
_REFUSED = {
    "DeepLift": f"{_ONLY_THE_GRADIENT}, times the input",
    "DeepLiftShap": f"{_ONLY_THE_GRADIENT}, times the input",
    "Deconvolution": _ONLY_THE_GRADIENT,
    "GuidedBackprop": _ONLY_THE_GRADIENT,
    "GuidedGradCam": _ONLY_THE_GRADIENT,
    "FeaturePermutation": "it mixes the images of a batch",
    "LRP": "it has no rules for LayerNorm and attention; the explainer relevance has",
    "NoiseTunnel": "it wraps another method",
    "ShapleyValues": "it visits every order of the patches; ShapleyValueSampling visits some",
}
# Arguments of captum's `attribute` that litcam gives itself, or that would change what comes back.
_OWN_ARGUMENTS = {
    *("self", "inputs", "target", "additional_forward_args"),
    *("return_convergence_delta", "return_input_shape", "show_progress", "kwargs"),
}
_ONE_PATCH_AT_A_TIME = ("FeatureAblation", "Occlusion", "ShapleyValueSampling")
_BY_GRADIENT = {"GradientShap", "InputXGradient", "IntegratedGradients", "Saliency"}
_OF_PATCHES = {"feature_mask", "sliding_window_shapes"}  # options that say where patches are
_REDUCTIONS = ("sum", "abs_sum", "abs_max")


class Captum(Explainer):
    """An attribution method of captum (Kokhlikyan et al. 2020), of the class's raw logit to the pixels.

    The attributions [3, H, W] of each image are reduced over the channels; the maps have the size of the image,
    [B, K, H, W]. Every image is explained on its own, with the same random numbers, so that it has the same map in
    every batch; the global random generators are left as they were.

    FeatureAblation, KernelShap, Lime, Occlusion and ShapleyValueSampling hide whole patches: each channel of each pixel
    gets the value of its patch, and ``"sum"`` triples it. KernelShap and Lime fit a linear model to ``n_samples``
    masked images; captum's default of 25 is too few for the 196 patches of a usual image.

    Args:
        net: the model.
        attribution: a class of captum.attr, one of ``SUPPORTED``.
        reduce: of the channels: ``"sum"``, which keeps the sign, ``"abs_sum"`` or ``"abs_max"``.
        seed: of the random methods.
        batch_size: images in one forward at most, where the method takes several forwards per image (not GradientShap:
            there it is ``n_samples``).
        options: for captum's ``attribute``, as its documentation lists them. ``baselines`` may be a number, the value
            that is put in place of pixels. Where captum has other defaults or none, they are here: ``baselines`` 0, the
            mean colour; ``sliding_window_shapes`` one patch, ``strides`` the window; ``feature_mask`` the patches.

    Raises:
        InputError: if captum is not installed, for a method or option that it does not have or that litcam cannot use,
            and for an option's value that captum refuses.
        UnsupportedModelError: when called, for weights in half precision and a method that hides one patch at a time.
    """

    on_pixels = True
    name = "captum"

    def __init__(
        self,
        net: nn.Module,
        attribution: str,
        reduce: Literal["sum", "abs_sum", "abs_max"] = "sum",
        seed: int = 0,
        batch_size: int = 32,
        **options: Any,
    ) -> None:
        super().__init__(net)
        self.method = _find_method(attribution)
        check_choice("reduce", reduce, _REDUCTIONS)
        check_at_least("batch_size", batch_size)
        self.known = _options(self.method)
        self.needs_tokens = bool(_OF_PATCHES & set(self.known))
        for option in options:
            if option not in self.known:
                raise InputError(f"captum:{attribution} has no option {option!r}; it has {', '.join(self.known)}.")
        self.attribution = attribution
        self.reduce = reduce
        self.seed = seed
        self.batch_size = batch_size
        self.options = options

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        trace = replace(trace, images=in_precision_of(trace.module, trace.images))
        images = full(trace.images)  # captum sums in the precision of what it attributes to
        with _random_state(images.device), eager(), autograd_anywhere(images.device.type):
            maps = [
                self._attribute(trace, image, target)
                for image, classes in zip(images, targets.tolist(), strict=True)
                for target in classes
            ]
        return torch.stack(maps).reshape(*targets.shape, *images.shape[-2:])  # [B, K, H, W]

    def _attribute(self, trace: AttentionTrace, image: Tensor, target: int) -> Tensor:
        """The map [H, W] of one image [3, H, W] and class."""
        inputs = image[None].clone().requires_grad_()  # a clone, for inference tensors bar autograd
        _seed(self.seed, image.device)
        # captum asks models for attributes of their own; a function has none.
        method = self.method(lambda images: trace.scores(trace.module(images.to(trace.images.dtype))))
        try:
            with unbroken(trace.module) if self.attribution in _BY_GRADIENT else nullcontext():
                attributions: Tensor = method.attribute(inputs, target=target, **self._arguments(image, trace))
        except AssertionError as error:  # how captum refuses arguments
            raise InputError(f"captum:{self.attribution} does not take its options: {error}") from error
        return _reduce(attributions.detach()[0], self.reduce)

    def _arguments(self, image: Tensor, trace: AttentionTrace) -> dict[str, Any]:
        """The options of the user over the defaults of litcam, as captum takes them for an image [3, H, W]."""
        defaults: dict[str, Any] = {
            "baselines": 0.0,
            "internal_batch_size": self.batch_size,
            "perturbations_per_eval": self.batch_size,
        }
        if self.needs_tokens:
            rows, columns = trace.grid
            defaults["feature_mask"] = _patch_indices(image, (rows, columns))
            defaults["sliding_window_shapes"] = (len(image), image.shape[1] // rows, image.shape[2] // columns)
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in self.options.items()}
        arguments = {key: value for key, value in {**defaults, **given}.items() if key in self.known}
        if "strides" in self.known:
            arguments.setdefault("strides", arguments["sliding_window_shapes"])
        if isinstance(arguments.get("baselines"), int | float):
            arguments["baselines"] = torch.full_like(image[None], arguments["baselines"])  # GradientShap wants a tensor
        return arguments


def captum_explainer(attribution: str) -> type[Explainer]:
    """The explainer class named ``captum:<attribution>``; its signature lists the options that captum's method has.

    Raises:
        InputError: if captum is not installed, or for a method that litcam cannot use.
    """
    parameters = list(inspect.signature(Captum).parameters.values())
    own = [parameter for parameter in parameters if parameter.name not in ("attribution", "options")]
    signature = inspect.Signature([*own, *_options(_find_method(attribution)).values()])
    members = {
        "__doc__": Captum.__doc__,
        "__init__": partialmethod(Captum.__init__, attribution=attribution),
        "__signature__": signature,
        "name": f"captum:{attribution}",
        "small_differences": attribution in _ONE_PATCH_AT_A_TIME,
    }
    return type(attribution, (Captum,), members)


def _find_method(attribution: str) -> Any:
    """The class of captum.attr with this name."""
    if attribution not in SUPPORTED:
        reason = _REFUSED.get(attribution, "captum has no such method, or it does not attribute to the image")
        raise InputError(f"captum:{attribution} is not supported: {reason}; choose one of {', '.join(SUPPORTED)}.")
    try:
        return getattr(importlib.import_module("captum.attr"), attribution)
    except ImportError as error:
        raise InputError('captum is not installed; pip install "litcam[captum]"') from error


def _options(method: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of captum's ``attribute`` that are the user's, as keyword parameters."""
    parameters = inspect.signature(method.attribute).parameters
    return {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in parameters.items()
        if name not in _OWN_ARGUMENTS
    }


def _patch_indices(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """To which patch each pixel of an image [3, H, W] belongs: int64 [1, 1, H, W]."""
    rows, columns = (
        torch.arange(side, device=image.device) * patches // side
        for side, patches in zip(image.shape[1:], grid, strict=True)
    )
    return (rows[:, None] * grid[1] + columns)[None, None]


def _reduce(attributions: Tensor, reduce: str) -> Tensor:
    """Attributions [3, H, W] as one map [H, W]."""
    if reduce == "sum":
        return attributions.sum(0)
    return attributions.abs().sum(0) if reduce == "abs_sum" else attributions.abs().amax(0)


_drawing = threading.RLock()  # the generators are the whole process's: two nets in two threads would share a sequence


@contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    """Restore the random generators that captum draws from, torch's and numpy's, on every path."""
    with _drawing:
        state = np.random.get_state()  # noqa: NPY002  # captum draws from the global one
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators that :func:`_random_state` restores, and no other device's."""
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
