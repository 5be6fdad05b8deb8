"""Balanced gradients: the values of a forward stay as they are, and its gradients become complete.

A layer that is not linear becomes, for autograd alone, the linear layer that it was on this input: normalisation with
its denominator held constant, x·gate(x) with its gate held constant, attention with its weights held constant, and a
product of two activations with half of the gradient to each (Mehri et al., CVPR 2025). Then a logit is the sum of
⟨x, ∂y/∂x⟩ over what entered the net and of ⟨b, ∂y/∂b⟩ over its biases, exactly. The layers are swapped where they call
torch's functions, as attention is observed: no module is touched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from litcam.errors import UnsupportedModelError
from litcam.vit.hooks import first_argument
from litcam.vit.model import ViT
from litcam.vit.precision import tolerance
from litcam.vit.sdpa import AttentionArguments
from litcam.vit.threads import in_this_thread


@dataclass(frozen=True)
class Units:
    """Ones that multiply the biases: the gradient of a score in them is Σ⟨b, ∂y/∂b⟩, for every image by itself.

    Attributes:
        tokens: [B, N], of biases that are added to tokens.
        features: [B], of those that are added to what the head made of the tokens.
    """

    tokens: Tensor
    features: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> "Units":
        """For tokens [B, N, D]."""
        return cls(tokens.new_ones(tokens.shape[:2]).requires_grad_(), tokens.new_ones(len(tokens)).requires_grad_())

    def beside(self, x: Tensor) -> Tensor | None:
        """As many as x [B, …, D] has vectors; None where x is not a batch of the same images."""
        if x.ndim < 2 or len(x) != len(self.features):
            return None
        of_tokens = x.ndim > 2 and x.shape[1] == self.tokens.shape[1]
        units = self.tokens if of_tokens else self.features
        return units.reshape(*units.shape, *[1] * (x.ndim - 1 - units.ndim)).expand(x.shape[:-1])


@dataclass
class BalancedForward:
    """What a balanced forward leaves behind; all of it is in its graph.

    Attributes:
        inputs: the tokens [B, N, D] that entered each block.
        units: of all biases from the first block on; none before it has begun.
    """

    inputs: list[Tensor] = field(default_factory=list)
    units: Units | None = None


@contextmanager
def balancing(vit: ViT) -> Iterator[BalancedForward]:
    """Balance the gradients of the forward that is run inside, and follow its biases from the first block on."""
    found = BalancedForward()
    mode = BalancedMode()

    def enter(block: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tokens = first_argument(arguments, keywords)
        if mode.units is None:
            found.units = mode.units = Units.of(tokens.detach())
        found.inputs.append(tokens)

    with ExitStack() as context:
        for block in vit.blocks:
            context.callback(block.register_forward_pre_hook(in_this_thread(enter), with_kwargs=True).remove)
        context.enter_context(mode)
        yield found


class BalancedMode(TorchFunctionMode):
    """Swaps the functions whose gradients are not complete for surrogates of the same value.

    They are layer_norm and rms_norm; gelu, silu, mish and hardswish; sigmoid and rsqrt, which make gates and
    denominators; scaled_dot_product_attention; and products of two tensors that both depend on the input. relu is
    complete as it is. Where a bias is added, units are.

    Args:
        units: of the biases; None follows none.
    """

    def __init__(self, units: Units | None = None) -> None:
        super().__init__()
        self.units = units

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        surrogate = _SURROGATES.get(function) if torch.is_grad_enabled() else None
        if surrogate is None:
            return function(*args, **kwargs)
        return surrogate(self, function, *args, **kwargs)

    def _beside(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        return None if self.units is None or bias is None else self.units.beside(x)

    def linear(self, function: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A bias that is multiplied by units."""
        units = self._beside(input, bias) if input.requires_grad else None
        if units is None:
            return F.linear(input, weight, bias)
        return _apply(_Linear, input, weight, bias, units)

    def layer_norm(
        self,
        function: Any,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        """The standard deviation held constant, the mean kept."""
        if not input.requires_grad or len(normalized_shape) != 1:
            return F.layer_norm(input, list(normalized_shape), weight, bias, eps)
        return _apply(_LayerNorm, input, weight, bias, eps, self._beside(input, bias))

    def rms_norm(
        self,
        function: Any,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        """The root mean square held constant."""
        output = F.rms_norm(input.detach(), list(normalized_shape), weight, eps)
        if not input.requires_grad:
            return output
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        dims = tuple(range(-len(normalized_shape), 0))
        factor = input.detach().square().mean(dims, keepdim=True).add(eps).rsqrt()
        return _same_value(input * (factor if weight is None else factor * weight), output)

    def gated(self, function: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x·gate(x) with the gate held constant."""
        kwargs.pop("inplace", None)
        return _apply(_Gated, input, lambda x: function(x, *args, **kwargs))

    def constant(self, function: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A gate or a denominator."""
        output: Tensor = function(*args, **kwargs)
        return output.detach()

    def product(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Half of the gradient to each of two factors."""
        output = function(*args, **kwargs)
        dependent = [factor for factor in args[:2] if isinstance(factor, Tensor) and factor.requires_grad]
        return output if len(dependent) < 2 else _same_value(output / 2, output.detach())

    def attention(self, function: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The weights held constant."""
        arguments = AttentionArguments(*args, **kwargs)
        cut = arguments.detached()
        return replace(cut, value=arguments.value).attend()


def _apply(function: type[Function], *arguments: Any) -> Tensor:
    output: Tensor = function.apply(*arguments)
    return output


def _same_value(differentiated: Tensor, value: Tensor) -> Tensor:
    """The value, with the gradients of another tensor."""
    return _apply(_SameValue, differentiated, value)


class _SameValue(Function):
    @staticmethod
    def forward(ctx: Any, differentiated: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


class _Linear(Function):
    """x·Wᵀ + b·units."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, units: Tensor) -> Tensor:
        ctx.save_for_backward(weight, bias)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        weight, bias = ctx.saved_tensors
        return gradient @ weight, None, None, gradient @ bias


class _LayerNorm(Function):
    """(x − mean x)/σ·weight + bias·units over the last dimension, with σ a constant."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, units: Tensor | None
    ) -> Tensor:
        output, _, per_deviation = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(per_deviation.to(x.dtype), weight, bias)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        per_deviation, weight, bias = ctx.saved_tensors
        of_units = gradient @ bias if ctx.needs_input_grad[4] else None
        scaled = gradient * (per_deviation if weight is None else weight)
        scaled = scaled.sub_(scaled.mean(-1, keepdim=True))
        return scaled if weight is None else scaled.mul_(per_deviation), None, None, None, of_units


class _Gated(Function):
    """x·gate(x), with the gate a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        output = function(x)
        ctx.save_for_backward(x, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, output = ctx.saved_tensors
        gate = (output / x).masked_fill_(x == 0, 0.5)  # of gelu, silu and hardswish at 0
        return gate.mul_(gradient), None


_SURROGATES: dict[Any, Callable[..., Any]] = {
    F.linear: BalancedMode.linear,
    F.layer_norm: BalancedMode.layer_norm,
    F.rms_norm: BalancedMode.rms_norm,
    F.scaled_dot_product_attention: BalancedMode.attention,
    **dict.fromkeys((F.gelu, F.silu, F.mish, F.hardswish), BalancedMode.gated),
    **dict.fromkeys((torch.sigmoid, Tensor.sigmoid, torch.rsqrt, Tensor.rsqrt), BalancedMode.constant),
    **dict.fromkeys((torch.mul, Tensor.mul, torch.multiply, Tensor.multiply), BalancedMode.product),
}


# ---------------------------------------------------------------------------------------------------------------------
# The sum
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contributions:
    """A score as a sum: Σ tokens + rest = total.

    Attributes:
        tokens: [B, K, N], what each token gives to the score of each class, prefix tokens first.
        rest: [B, K], what no token can be given: biases.
        total: [B, K], the score, such as the class's logit.
        precision: the coarsest that anything of it was computed in.
    """

    tokens: Tensor
    rest: Tensor
    total: Tensor
    precision: torch.dtype

    def error(self) -> Tensor:
        """|Σ tokens + rest − total|, as a share of the larger of |total| and Σ|tokens|: [B, K]; 0 where all is 0."""
        difference = (self.tokens.sum(-1) + self.rest - self.total).abs()
        scale = torch.maximum(self.total.abs(), self.tokens.abs().sum(-1))
        return torch.where(difference == 0, difference, difference / scale)

    def check(self, method: str, module: nn.Module) -> None:
        """Raise UnsupportedModelError unless the sum is the total, within the rounding of its precision.

        Rounding leaves 1e-6 in single precision; a net with an activation that has no surrogate misses by 0.2 and more.
        """
        error = self.error()
        if bool((error > tolerance(self.precision)).any()):
            raise UnsupportedModelError(
                f"{method}: the contributions in {type(module).__name__} miss its logits by {float(error.max()):.1%}: "
                "it has a part that is not linear once norms, gates and attention weights are held constant. Supported "
                "are Linear, LayerNorm and RMSNorm, GELU, SiLU, Mish, Hardswish and ReLU, gated MLPs, layer scale, and "
                "class-token, average and attention pooling."
            )
