"""Attention rollout."""

from torch import Tensor, nn

from litcam.explainers.base import Explainer, check_layer, register
from litcam.vit.sdpa import AttentionCall
from litcam.vit.trace import AttentionTrace


@register("rollout")
class Rollout(Explainer):
    """Attention rollout (Abnar & Zuidema, ACL 2020, equation 1): the product over the layers of Ā + I, rows normalised.

    Ā is the mean over the heads; of the product only the row of the tokens that the head reads is wanted (see
    :class:`RawAttention` for which), so it is a vector–matrix product per layer, last to first. Knows no classes.

    Args:
        net: the model.
        start_layer: the first layer of the product.

    Raises:
        InputError: if the net has no such layer.
    """

    class_specific = False

    def __init__(self, net: nn.Module, start_layer: int = 0) -> None:
        super().__init__(net)
        check_layer("start_layer", start_layer, len(self.vit.blocks))
        self.start_layer = start_layer

    def read(self, call: AttentionCall) -> Tensor:
        return call.weights().mean(1)  # [B, H, N, N] -> [B, N, N]

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        layers = trace.readings[self][self.start_layer :]
        row = trace.readout.row(layers[0][:, 0])  # [B, N]
        for attention in reversed(layers):
            # Rows of Ā sum to one, so a row of Ā + I is normalised by two.
            row = (row + (row[:, None] @ attention)[:, 0]) / 2
        return self.to_grid(trace, row)[:, None]
