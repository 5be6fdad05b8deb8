"""Raw attention: where the class token looks."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from litcam.errors import check_choice
from litcam.explainers.base import Explainer, check_layer, register
from litcam.vit.readout import known_readout, look_first, remember_readout
from litcam.vit.recorder import record
from litcam.vit.sdpa import AttentionCall
from litcam.vit.trace import AttentionTrace


@register("raw_attention")
class RawAttention(Explainer):
    """The attention of the tokens that the head reads, summed over layers and heads (AGCAM paper, figures 1 and 3).

    The row is the class token's, the mean of the class and distillation tokens' in distilled models, the mean of all
    patch tokens' where the head pools those: the weights are those that :class:`litcam.vit.readout.Readout` has
    observed. Knows no classes.

    Args:
        net: the model.
        normalize: ``"softmax"`` for the attention as the net uses it (figure 1), ``"sigmoid"`` for the scores
            renormalised as in AGCAM (figure 3).
        layer: one layer alone, such as -1 for the last (what DINO shows); None sums over all.

    Raises:
        InputError: if the net has no such layer.
        UnsupportedModelError: when called, if it cannot be told which tokens the head reads.
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

    def trace(self, images: Tensor) -> AttentionTrace:
        look_first(self.vit, images)
        return super().trace(images)

    def read(self, call: AttentionCall) -> tuple[Tensor, Tensor] | None:
        readout = known_readout(self.vit.root, call.query.shape[-2])
        if readout is None:
            return None
        rows = call.scores(readout.rows)  # [B, H, R, N]
        rows = rows.softmax(-1) if self.normalize == "softmax" else rows.sigmoid()
        weights = readout.of_rows(rows)
        return (weights @ rows).sum(1), readout.weights.to(rows.device).expand(len(rows), -1)  # [B, N] both

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        readings = trace.readings.get(self, [None])
        weights = trace.readout.weights.to(trace.logits.device)
        if any(reading is None or not torch.equal(reading[1][0], weights) for reading in readings):
            # The tokens were not known, or others, when the forward ran; now they are.
            remember_readout(self.vit.root, trace.readout)
            trace = record(replace(self.vit, root=trace.module), trace.images, self.readers)
            readings = trace.readings[self]
        layers = torch.stack([rows for rows, _ in readings])  # [L, B, N]
        tokens = layers.sum(0) if self.layer is None else layers[self.layer]
        return self.to_grid(trace, tokens)[:, None]
