"""Evidence: what the class token read from each token, in units of the logit."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from litcam.errors import check_choice
from litcam.explainers.base import Explainer, register
from litcam.vit.balanced import BalancedMode, Contributions, Units
from litcam.vit.context import autograd_anywhere
from litcam.vit.gradients import AttentionGradient, class_gradients, graph_of
from litcam.vit.readout import look_first, may_replay
from litcam.vit.sdpa import AttentionArguments, AttentionCall, full
from litcam.vit.trace import AttentionTrace


class _Layer(NamedTuple):
    """What is kept of an attention call, P prefix tokens."""

    weights: Tensor  # [B, H, P, N]
    value: Tensor  # [B, H, N, d]
    output: Tensor  # [B, H, P, d]


@register("evidence")
class Evidence(Explainer):
    """Evidence (litcam's own): c_j = Σ over layers l and heads h of A_lh[0, j]·(g_lh·v_lh,j), signed, in logit units.

    A is the class token's attention row, v the values and g = ∂y_c/∂(output of head h in block l, class token), run
    along the class token's own way through skip connections and MLPs, with the denominators of norms and the gates of
    activations held constant (:mod:`litcam.vit.balanced`). That way is then linear, and the logit is the sum of what
    the class token read from the tokens, of its own embedding ⟨∂y/∂E_0[0], E_0[0]⟩ and of the biases Σ⟨b, ∂y/∂b⟩:
    nothing is left over. It tells where the class token read, one hop: what earlier blocks had carried into those
    tokens is not traced back.

    The sum is checked on every call, and :meth:`contributions` gives all its terms. As in AGCAM only the prefix tokens
    are replayed. Where the head reads all tokens (average or attention pooling) c_j sums over the rows of all of them
    and includes the token's own embedding, by one forward with the attention inputs cut.

    Args:
        net: the model.
        sign: ``"signed"`` keeps evidence against the class, negative, so that the map adds up to the patches' share of
            the logit; upsampling then takes the strongest evidence against to 0. ``"positive"`` keeps c⁺ alone, for
            localization.

    The map is zero everywhere if the logit depends on no token, as with a head of zeros.

    Raises:
        InputError: for another sign.
        UnsupportedModelError: when called, if the sum is not the logit: the way from the attentions to the logits then
            has a part, such as a tanh, that the surrogates do not make linear.
    """

    def __init__(self, net: nn.Module, sign: Literal["signed", "positive"] = "signed") -> None:
        super().__init__(net)
        check_choice("sign", sign, ("signed", "positive"))
        self.sign = sign

    @property
    def autograd(self) -> Literal["balanced cut"] | None:
        return None if may_replay(self.vit) else "balanced cut"

    def trace(self, images: Tensor) -> AttentionTrace:
        look_first(self.vit, images)
        return super().trace(images)

    def read(self, call: AttentionCall) -> Any:
        if self.autograd is not None:
            return None
        prefix = slice(0, self.vit.num_prefix_tokens)
        # The value is cloned: it is a view of q, k and v together, which would all be kept alive.
        return _Layer(call.weights(prefix), call.value.clone(), call.output[:, :, prefix].clone())

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        contributions = self.contributions(trace, targets)
        contributions.check(self.name, trace.module)
        heatmaps = self.to_grid(trace, contributions.tokens)
        return heatmaps if self.sign == "signed" else heatmaps.relu()

    def contributions(self, trace: AttentionTrace, targets: Tensor) -> Contributions:
        """The logits of classes [B, K] as sums over all tokens, with the class token's own embedding, and the biases.

        ``contributions(...).error()`` is the relative error of the sum that every call is checked by. To be called with
        a trace of :meth:`trace`.
        """
        found = self._replayed(trace, targets)
        tokens, rest = self._differentiated(trace, targets) if found is None else found
        return Contributions(tokens, rest, trace.scores(trace.logits).gather(1, targets), trace.run.precision)

    def _replayed(self, trace: AttentionTrace, targets: Tensor) -> tuple[Tensor, Tensor] | None:
        """Terms of the tokens [B, K, N] and of the biases [B, K], from the replay; None if it is not exact."""
        found: Sequence[_Layer | None] = trace.readings.get(self, [])
        layers = [layer for layer in found if layer is not None]
        if len(layers) < len(self.vit.blocks):
            return None
        with autograd_anywhere(trace.images.device.type):
            outputs = [layer.output.clone().to(self.vit.dtype).requires_grad_() for layer in layers]
            prefix = trace.prefix.clone().to(self.vit.dtype).requires_grad_()
            units = Units.of(prefix)
            with BalancedMode(units):
                logits = trace.replay(outputs, prefix)
        if logits is None:
            return None
        own, rest, gradients = _gradients(trace.scores(logits), targets, prefix, units, outputs)
        tokens = own.new_zeros(*own.shape[:2], layers[0].value.shape[2])  # [K, B, N]
        tokens[..., : own.shape[-1]] = own
        for layer, gradient in zip(layers, gradients, strict=True):
            at_weights = full(gradient) @ full(layer.value).transpose(-2, -1)  # [K, B, H, P, N]
            tokens += (at_weights * layer.weights).sum((2, 3))
        return tokens.transpose(0, 1), rest

    def _differentiated(self, trace: AttentionTrace, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The same, from a forward with autograd."""
        graph = graph_of(trace, "balanced cut")
        assert graph.balance is not None
        assert graph.balance.units is not None  # the blocks have run
        own, rest, gradients = _gradients(
            trace.scores(graph.logits), targets, graph.balance.inputs[0], graph.balance.units, graph.all_outputs
        )
        calls = [call for of_block in graph.calls for call in of_block]
        for call, gradient in zip(calls, gradients, strict=True):
            own = own + _read(AttentionGradient(call, gradient))
        return own.transpose(0, 1), rest


def _gradients(
    scores: Tensor, targets: Tensor, tokens: Tensor, units: Units, outputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Terms of the tokens that entered the first block [K, B, N] and of the biases [B, K]; gradients at the outputs."""
    at_tokens, *gradients, of_tokens, of_features = class_gradients(
        scores, targets, [tokens, *outputs], [units.tokens, units.features]
    )
    own = (full(at_tokens) * full(tokens.detach())).sum(-1)
    return own, (of_tokens.sum(-1) + of_features).T, gradients


def _read(layer: AttentionGradient) -> Tensor:
    """Σ over heads and rows i of A[i, j]·(g_i·v_j): [K, B, N].

    A·g, summed over the rows, is the gradient at the values; fused attention gives it without an N×N matrix.
    """
    call = layer.call
    with autograd_anywhere(call.value.device.type):
        value = call.value.clone().requires_grad_()
        output = AttentionArguments(call.query, call.key, value, call.bias, scale=call.scale).attend()
        found = [torch.autograd.grad(output, value, gradient, retain_graph=True)[0] for gradient in layer.gradients]
    return torch.stack([(full(gradient) * full(call.value)).sum((1, 3)) for gradient in found])
