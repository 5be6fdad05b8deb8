"""The Grad-CAM family and CAM on tokens: Grad-CAM, Grad-CAM++, HiResCAM, CAM, Score-CAM.

The channels of a token stand for the channels of a convolutional map. The last block's output has no gradient at the
patch tokens of a class-token model, so the activations are those before it: what the attention of the last block reads
(the output of its norm1). Only that block, norm and head run again, with autograd.
"""

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from litcam import heatmaps as maps
from litcam.errors import InputError, UnsupportedModelError, check_at_least
from litcam.explainers.base import Explainer, register
from litcam.vit.gradients import class_gradients, last_block
from litcam.vit.model import TimmViT
from litcam.vit.sdpa import full
from litcam.vit.threads import in_this_thread
from litcam.vit.trace import AttentionTrace


class _TokenCAM(Explainer):
    """Skeleton: channels weighted by their gradients.

    Args:
        net: the model.
        balanced: gradients in which attention weights, denominators of norms and gates are constants
            (:mod:`litcam.vit.balanced`).

    Raises:
        UnsupportedModelError: if the last block cannot be run again by itself.
    """

    relu = True

    def __init__(self, net: nn.Module, balanced: bool = False) -> None:
        super().__init__(net)
        self.balanced = balanced

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        trace.check_features()
        block = last_block(trace, self.balanced)
        (gradients,) = class_gradients(trace.scores(block.logits), targets, [block.leaf])  # [K, B, N, D]
        patches = slice(self.vit.num_prefix_tokens, None)
        # In double precision: Grad-CAM++ divides by small numbers.
        features, gradients = block.leaf.detach()[:, patches].double(), gradients[:, :, patches].double()
        heatmap = (self.weights(features, gradients) * features).sum(-1)  # [K, B, patches]
        grid = heatmap.transpose(0, 1).reshape(*targets.shape, *trace.grid)
        return grid.relu() if self.relu else grid

    @abstractmethod
    def weights(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Weights, broadcastable to [K, B, P, D], from features [B, P, D] and their gradients [K, B, P, D]."""


@register("gradcam")
class GradCAM(_TokenCAM):
    """Grad-CAM (Selvaraju et al., ICCV 2017, equations 1 and 2): (Σ_d w_d F_d)⁺.

    w_d is the mean gradient of channel d. F are the patch tokens that the last block's attention reads; gradients are
    those of the class's raw logit.

    Args:
        net: the model.
        balanced: gradients in which attention weights, denominators of norms and gates are constants
            (:mod:`litcam.vit.balanced`).

    Raises:
        UnsupportedModelError: if the last block cannot be run again by itself.
    """

    def weights(self, features: Tensor, gradients: Tensor) -> Tensor:
        return gradients.mean(-2, keepdim=True)


@register("gradcam_plusplus")
class GradCAMPlusPlus(_TokenCAM):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018, equations 5, 7 and 19): (Σ_d w_d F_d)⁺, w_d = Σ_p α_pd·(g_pd)⁺.

    α = g² / (2g² + (Σ_p F_pd)·g³ + ε), and 0 where the denominator is 0; the paper's factor exp(y_c) scales the whole
    map and is left out. F are the patch tokens that the last block's attention reads, g their gradients.

    The paper has no ε. The field's usual code adds 1e-6, which is not small beside the g² of a ViT and so gives another
    map: its maps need ``eps=1e-6``.

    Args:
        net: the model.
        balanced: gradients in which attention weights, denominators of norms and gates are constants
            (:mod:`litcam.vit.balanced`).
        eps: ε; 0 is the paper's formula.

    Raises:
        InputError: if ``eps`` is not a number of at least 0.
        UnsupportedModelError: if the last block cannot be run again by itself.
    """

    def __init__(self, net: nn.Module, balanced: bool = False, eps: float = 0.0) -> None:
        super().__init__(net, balanced)
        if not isinstance(eps, int | float) or not 0 <= eps < math.inf:
            raise InputError(f"eps is {eps!r}; a number of at least 0 is needed.")
        self.eps = eps

    def weights(self, features: Tensor, gradients: Tensor) -> Tensor:
        squared = gradients.square()
        denominator = 2 * squared + features.sum(-2, keepdim=True) * squared * gradients + self.eps
        alpha = torch.where(denominator == 0, torch.zeros_like(squared), squared / denominator)
        return (alpha * gradients.relu()).sum(-2, keepdim=True)


@register("hirescam")
class HiResCAM(_TokenCAM):
    """HiResCAM (Draelos & Carin, 2020, equation 3): Σ_d g_d F_d at every patch, without a ReLU.

    F are the patch tokens that the last block's attention reads, g the gradients of the class's raw logit there.

    Args:
        net: the model.
        balanced: gradients in which attention weights, denominators of norms and gates are constants
            (:mod:`litcam.vit.balanced`).

    Raises:
        UnsupportedModelError: if the last block cannot be run again by itself.
    """

    relu = False

    def weights(self, features: Tensor, gradients: Tensor) -> Tensor:
        return gradients


@register("cam")
class CAM(Explainer):
    """CAM (Zhou et al., CVPR 2016, equation 2): how much every patch adds to the class's logit, w_c·x_n.

    Defined where the head is linear in the mean of the patch tokens x_n. timm puts a LayerNorm between mean and head:
    its centring and scale, both known once the mean is, are linear too, so x_n counts as γ⊙(x_n − mean x_n)/σ, with σ
    that of the mean token. The mean of the map is then the logit less a constant, in every case.

    Args:
        net: an average-pooled timm model.

    Raises:
        UnsupportedModelError: for any other pooling or head, or if the last block cannot be run again by itself.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        inner = self.vit.net
        linear = isinstance(getattr(inner, "head", None), nn.Linear)
        norm = getattr(inner, "fc_norm", None)
        pooled = getattr(inner, "global_pool", None) == "avg" and getattr(inner, "attn_pool", None) is None
        known = isinstance(self.vit, TimmViT) and isinstance(norm, nn.Identity | nn.LayerNorm)
        if not (pooled and linear and known):
            raise UnsupportedModelError(
                "cam needs a timm model with average pooling (global_pool='avg') and one linear head; "
                "hirescam is its generalisation to other models."
            )

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        net: Any = self.vit.net
        tokens = _final_tokens(trace, net)
        pooled = tokens.mean(1)
        # Without the hooks of norm and head, for below they do not act either.
        if not trace.agrees(net.head.forward(net.fc_norm.forward(pooled))):
            raise UnsupportedModelError(f"cam: the logits of {type(trace.module).__name__} are not those of its head.")
        weights = trace.scores(net.head.weight.T).T[targets]  # [B, K, D]
        if isinstance(net.fc_norm, nn.LayerNorm):
            deviation = (pooled.var(-1, correction=0) + net.fc_norm.eps).sqrt()[:, None, None]
            tokens = (tokens - tokens.mean(-1, keepdim=True)) / deviation
            weights = weights * (1 if net.fc_norm.weight is None else net.fc_norm.weight)
        return torch.matmul(weights, tokens.transpose(1, 2)).reshape(*targets.shape, *trace.grid)


def _final_tokens(trace: AttentionTrace, net: Any) -> Tensor:
    """The patch tokens [B, P, D] that the head pools."""
    seen: list[Tensor] = []
    handle = net.norm.register_forward_hook(in_this_thread(lambda norm, inputs, output: seen.append(output)))
    try:
        trace.resume_as_recorded()
    finally:
        handle.remove()
    return seen[-1][:, trace.vit.num_prefix_tokens :]


@register("score_cam")
class ScoreCAM(Explainer):
    """Score-CAM (Wang et al., CVPR workshop 2020, equations 3 to 5): (Σ_d α_d F_d)⁺ without gradients.

    α is the softmax over the channels d of the raw logit y_c(x ⊙ H_d) of the image seen through the channel (the
    paper's baseline y_c(0) cancels in the softmax). H_d is F_d, the patch tokens that the last block's attention reads,
    upsampled bilinearly and scaled to [0, 1]; a constant channel becomes zeros. One forward per channel: 768 for
    ViT-base.

    Args:
        net: the model.
        batch_size: masked images per forward; bounds the memory.

    Raises:
        InputError: for a batch size below 1.
        UnsupportedModelError: if the last block cannot be run again by itself.
    """

    def __init__(self, net: nn.Module, batch_size: int = 64) -> None:
        super().__init__(net)
        check_at_least("batch_size", batch_size)
        self.batch_size = batch_size

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        trace.check_features()
        features = last_block(trace).leaf.detach()[:, self.vit.num_prefix_tokens :]  # [B, P, D]
        channels = features.transpose(1, 2).unflatten(-1, trace.grid)  # [B, D, gh, gw]
        scores = torch.stack([self._scores(trace, *pair) for pair in zip(trace.images, channels, strict=True)])
        weights = scores.gather(2, targets[:, None].expand(-1, scores.shape[1], -1)).softmax(1)  # [B, D, K]
        return torch.einsum("bdk,bdhw->bkhw", weights, full(channels).to(weights)).relu()

    def _scores(self, trace: AttentionTrace, image: Tensor, channels: Tensor) -> Tensor:
        """Logits [D, C] of an image [3, H, W] seen through each of its channels [D, gh, gw]."""
        size, few = (image.shape[-2], image.shape[-1]), channels.split(self.batch_size)
        logits = [trace.module(image * maps.upsample(some, size)[:, None].to(image.dtype)) for some in few]
        return full(trace.scores(torch.cat(logits)))
