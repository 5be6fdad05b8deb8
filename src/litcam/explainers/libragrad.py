"""LibraGrad: input times gradient and FullGrad with balanced gradients."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from litcam.errors import check_choice
from litcam.explainers.base import Explainer, register
from litcam.vit.balanced import Contributions
from litcam.vit.context import autograd_anywhere
from litcam.vit.gradients import class_gradients, graph_of
from litcam.vit.precision import coarsest
from litcam.vit.sdpa import full
from litcam.vit.trace import AttentionTrace

Score = Literal["probability", "logit"]


@register("libragrad")
class LibraGrad(Explainer):
    """LibraGrad (Mehri, Soleymani Baghshah & Pilehvar, CVPR 2025): attributions with balanced gradients, signed.

    The gradients of :mod:`litcam.vit.balanced` run through the whole net: attention weights, the denominators of norms
    and the gates of activations are constants, and a product of two activations halves its gradient. Input×gradient is
    Σ over channels of E·∂y/∂E at the tokens E that enter a block. It is complete: over the tokens that enter the first
    block, together with the terms of all biases, it adds up to the logit. The sum is checked on every call, and
    :meth:`contributions` gives its terms.

    Args:
        net: the model.
        form: ``"fullgrad_plus"`` sums input×gradient over the inputs of all blocks and adds the terms of the biases,
            each at the token it was added to; ``"fullgrad"`` takes the input of the first block and the biases;
            ``"input_gradient"`` the input of the first block alone.
        score: y is the softmax ``"probability"`` of the class, as in the paper, or its raw ``"logit"``.

    The map is zero everywhere if the score depends on no token, as with a head of zeros.

    Raises:
        InputError: for another form or score.
        UnsupportedModelError: when called, if the sum is another: the net then has a part that is not balanced.
    """

    def __init__(
        self,
        net: nn.Module,
        form: Literal["fullgrad_plus", "fullgrad", "input_gradient"] = "fullgrad_plus",
        score: Score = "probability",
    ) -> None:
        super().__init__(net)
        check_choice("form", form, ("fullgrad_plus", "fullgrad", "input_gradient"))
        check_choice("score", score, ("probability", "logit"))
        self.form = form
        self.score = score

    @property
    def autograd(self) -> Literal["balanced"]:
        return "balanced"

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        blocks = slice(None) if self.form == "fullgrad_plus" else slice(1)
        terms = self._terms(trace, targets, self.score, blocks)
        terms.sum_of_first().check(self.name, trace.module)
        tokens = terms.products.sum(0)
        return self.to_grid(trace, tokens if self.form == "input_gradient" else tokens + terms.of_tokens)

    def contributions(self, trace: AttentionTrace, targets: Tensor) -> Contributions:
        """The logits of classes [B, K] as sums over the tokens that entered the first block, and the biases.

        The trace is one of :meth:`trace`, and good for one call.
        """
        return self._terms(trace, targets, "logit", slice(1)).sum_of_first()

    @staticmethod
    def _terms(trace: AttentionTrace, targets: Tensor, score: Score, blocks: slice) -> "_Terms":
        graph = graph_of(trace, "balanced")
        assert graph.balance is not None
        units, inputs = graph.balance.units, graph.balance.inputs[blocks]
        assert units is not None  # the blocks have run
        with autograd_anywhere(trace.images.device.type):
            # In double precision: a probability that is nearly 1 has a gradient all the same.
            scores = trace.scores(graph.logits) if score == "logit" else trace.probabilities(graph.logits.double())
        at_logits, *gradients, of_tokens, of_features = class_gradients(
            scores, targets, [graph.logits, *inputs], [units.tokens, units.features]
        )
        pairs = zip(gradients, inputs, strict=True)
        products = torch.stack([(full(gradient) * full(tokens.detach())).sum(-1) for gradient, tokens in pairs])
        total = (full(at_logits) * full(graph.logits.detach())).sum(-1)
        precision = coarsest(trace.module, graph.logits)
        return _Terms(products.transpose(1, 2), of_tokens.transpose(0, 1), of_features.T, total.T, precision)


@dataclass(frozen=True)
class _Terms:
    """What a balanced score is made of.

    Attributes:
        products: [L, B, K, N], input×gradient of the tokens that entered each block.
        of_tokens: [B, K, N], terms of the biases that are added to tokens.
        of_features: [B, K], of those behind the tokens.
        total: [B, K], Σ over all logits of y·∂score/∂y; of a logit, itself.
        precision: the coarsest that any of it was computed in.
    """

    products: Tensor
    of_tokens: Tensor
    of_features: Tensor
    total: Tensor
    precision: torch.dtype

    def sum_of_first(self) -> Contributions:
        """The first block's tokens and all biases, which add up to the total."""
        return Contributions(self.products[0], self.of_tokens.sum(-1) + self.of_features, self.total, self.precision)
