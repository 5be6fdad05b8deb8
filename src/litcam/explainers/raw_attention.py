"""Raw attention: where the class token looks."""

from typing import Literal

import torch
from torch import Tensor, nn

from litcam.errors import check_choice
from litcam.explainers.base import Explainer, check_layer, register
from litcam.vit.sdpa import AttentionCall
from litcam.vit.trace import AttentionTrace


@register("raw_attention")
class RawAttention(Explainer):
    """The attention of the tokens that the head reads, summed over layers and heads (AGCAM paper, figures 1 and 3).

    The row is the class token's, the mean of the class and distillation tokens' in distilled models, and the mean of
    all patch tokens' where the head pools those. Knows no classes.

    Args:
        net: the model.
        normalize: ``"softmax"`` for the attention as the net uses it (figure 1), ``"sigmoid"`` for the scores
            renormalised as in AGCAM (figure 3).
        layer: one layer alone, such as -1 for the last (what DINO shows); None sums over all.

    Raises:
        InputError: if the net has no such layer.
    """

    class_specific = False

    def __init__(
        self, net: nn.Module, normalize: Literal["softmax", "sigmoid"] = "softmax", layer: int | None = None
    ) -> None:
        super().__init__(net)
        check_choice("normalize", normalize, ("softmax", "sigmoid"))
        check_layer("layer", layer, len(self.vit.blocks))
        self.normalize = normalize
        self.layer = layer

    def read(self, call: AttentionCall) -> Tensor:
        rows = call.scores(self.vit.readout)  # [B, H, R, N]
        rows = rows.softmax(-1) if self.normalize == "softmax" else rows.sigmoid()
        return rows.mean(-2).sum(1)  # [B, N]

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        layers = torch.stack(list(trace.readings[self]))  # [L, B, N]
        tokens = layers.sum(0) if self.layer is None else layers[self.layer]
        return self.to_grid(trace, tokens)[:, None]
