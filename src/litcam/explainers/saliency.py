"""Saliency: the gradient at the pixels."""

from torch import Tensor, nn

from litcam.explainers.base import Explainer, register
from litcam.vit.gradients import class_gradients, graph_of
from litcam.vit.trace import AttentionTrace, Autograd


@register("saliency")
class Saliency(Explainer):
    """Vanilla gradients (Simonyan, Vedaldi & Zisserman, ICLR workshop 2014, section 3): max over channels of |∂y/∂x|.

    The map is one of pixels, [H, W]; y is the class's raw logit, x the normalised image.

    Args:
        net: the model.
        balanced: gradients in which attention weights, denominators of norms and gates are constants
            (:mod:`litcam.vit.balanced`).
    """

    on_pixels = True
    needs_tokens = False

    def __init__(self, net: nn.Module, balanced: bool = False) -> None:
        super().__init__(net)
        self.balanced = balanced

    @property
    def autograd(self) -> Autograd:
        return "balanced" if self.balanced else "full"

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        graph = graph_of(trace, self.autograd)
        (gradients,) = class_gradients(trace.scores(graph.logits), targets, [graph.leaf])  # [K, B, 3, H, W]
        return gradients.abs().amax(2).transpose(0, 1)
