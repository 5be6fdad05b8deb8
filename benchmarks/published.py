"""AGCAM the published way: one image at a time, by autograd through the explicit N×N attention of every block.

What the benchmarks compare litcam's agcam with. Written from equations 2 and 7 of the paper (Leem & Seo, AAAI 2024) and
from what its authors' program computes; same maps as litcam's, to rounding.
"""

import copy
from typing import Any

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from litcam.errors import UnsupportedModelError
from litcam.vit.model import find_vit


class PublishedAGCAM:
    """AGCAM of a class-token ViT: Σ over layers and heads of sigmoid(S) ⊙ ReLU(∂y_c/∂A), in the class token's row.

    Works on a copy of the net that shares its weights: fused attention off, and the input of every attention (after
    norm1) cut from the graph, so that gradients run along the skip connections and MLPs only. No ``.grad`` is touched.

    Args:
        net: a timm ViT, or a module that holds one.
        weight_gradients: differentiate with respect to the weights too. The published program calls ``backward()``,
            which does; without them this is the least that autograd can do.

    Raises:
        UnsupportedModelError: for a net without class token, or with attention of another kind.
    """

    def __init__(self, net: nn.Module, weight_gradients: bool = True) -> None:
        vit = find_vit(net)
        attentions = [getattr(block, "attn", None) for block in vit.net.blocks]
        if getattr(vit.net, "global_pool", "") != "token" or not all(type(a) is Attention for a in attentions):
            raise UnsupportedModelError("The published AGCAM is for class-token ViTs of timm with plain attention.")
        self.weight_gradients = weight_gradients
        self.grid = vit.grid
        self.net: Any = copy.deepcopy(vit.net, {id(weight): weight for weight in vit.net.parameters()}).eval()
        self._forget()
        for block in self.net.blocks:
            block.attn.fused_attn = False
            block.attn.register_forward_pre_hook(lambda module, arguments: (arguments[0].detach(), *arguments[1:]))
            block.attn.q_norm.register_forward_hook(lambda module, inputs, query: self.queries.append(query))
            block.attn.k_norm.register_forward_hook(lambda module, inputs, key: self.keys.append(key))
            block.attn.attn_drop.register_forward_hook(lambda module, inputs, a: self.attentions.append(a))

    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Maps [B, gh, gw] of the classes [B] in normalised images [B, 3, H, W], one after the other."""
        with torch.inference_mode(False), torch.enable_grad():
            images = images.clone()  # inference tensors bar autograd
            maps = [self._explain(images[i : i + 1], int(target)) for i, target in enumerate(targets)]
        return torch.stack(maps)

    def _explain(self, image: Tensor, target: int) -> Tensor:
        """The map [gh, gw] of one image [1, 3, H, W]."""
        logits = self.net(image)
        weights = [weight for weight in self.net.parameters() if weight.requires_grad] if self.weight_gradients else []
        gradients = torch.autograd.grad(logits[0, target], [*self.attentions, *weights], allow_unused=True)
        total = torch.zeros(())
        with torch.no_grad():
            for block, query, key, alpha in zip(self.net.blocks, self.queries, self.keys, gradients, strict=False):
                assert alpha is not None  # every attention's class row reaches the head
                scores = query[0, :, 0:1] @ key[0].transpose(-2, -1) * block.attn.scale  # [H, 1, N]
                total = (scores.sigmoid() * alpha[0, :, 0:1].relu()).sum((0, 1)) + total.to(scores)  # [N]
        self._forget()
        return total[self.net.num_prefix_tokens :].reshape(self.grid((image.shape[-2], image.shape[-1])))

    def _forget(self) -> None:
        """Let go of the last image's matrices."""
        self.queries: list[Tensor] = []  # [1, H, N, d] per block
        self.keys: list[Tensor] = []
        self.attentions: list[Tensor] = []  # [1, H, N, N]
