"""Reference implementations of the methods without gradients, beside those of oracles.py: slow, plain, one image each.

Nothing here uses hooks or the package under test. Maps are unscaled: [gh, gw], or [H, W] where the function says so.
"""

import math
from typing import Any

import networkx
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import oracles


def rise(
    net: nn.Module,
    image: Tensor,
    target: int,
    num_masks: int = 20,
    cells: int = 7,
    probability: float = 0.5,
    seed: int = 0,
) -> Tensor:
    """RISE (Petsiuk, Das & Saenko, BMVC 2018, eq. 6), [H, W]: 1 / (E[M] N) * sum_i p_c(I * M_i) M_i.

    The random numbers are drawn in the package's order: all cells, all vertical offsets, all horizontal ones.
    """
    height, width = image.shape[-2:]
    cell_height, cell_width = math.ceil(height / cells), math.ceil(width / cells)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_masks, cells, cells, generator=generator)
    tops = torch.randint(cell_height, (num_masks,), generator=generator)
    lefts = torch.randint(cell_width, (num_masks,), generator=generator)
    total = torch.zeros(height, width)
    for i in range(num_masks):
        grid = (uniform[i] < probability).float()
        large = bilinear(grid, (cells + 1) * cell_height, (cells + 1) * cell_width)
        mask = large[tops[i] : tops[i] + height, lefts[i] : lefts[i] + width]
        with torch.no_grad():
            total += torch.softmax(net((image * mask)[None])[0], dim=0)[target] * mask
    return total / (probability * num_masks)


def bilinear(grid: Tensor, height: int, width: int) -> Tensor:
    """Enlarge [h, w] to [height, width]: pixel centres at half integers, values beyond the outer centres held."""
    return _interpolation(grid.shape[0], height).to(grid) @ grid @ _interpolation(grid.shape[1], width).to(grid).T


def _interpolation(few: int, many: int) -> Tensor:
    """The matrix [many, few] of linear interpolation along one side."""
    matrix = torch.zeros(many, few)
    for i in range(many):
        position = min(max((i + 0.5) * few / many - 0.5, 0.0), few - 1.0)
        below = min(int(position), few - 2) if few > 1 else 0
        matrix[i, below] += 1 - (position - below)
        if few > 1:
            matrix[i, below + 1] += position - below
    return matrix


def score_cam(net: VisionTransformer, image: Tensor, target: int) -> Tensor:
    """Score-CAM (Wang et al., CVPRW 2020, eqs. 4-7) on patch tokens: ReLU(sum_k alpha_k A_k).

    A_k is channel k of the last block's norm1 output, H_k the same enlarged and scaled to [0, 1] (zeros if constant),
    alpha the softmax over the channels of y_c(x * H_k) - y_c(0).
    """
    trace = oracles.forward(net, image)
    features = trace.normed[-1].detach()[net.num_prefix_tokens :]  # [P, D]
    with torch.no_grad():
        baseline = net(torch.zeros_like(image)[None])[0, target]
        scores = []
        for k in range(features.shape[1]):
            mask = oracles.minmax(bilinear(features[:, k].reshape(trace.grid), *image.shape[-2:]))
            scores.append(net((image * mask)[None])[0, target] - baseline)
    alphas = torch.softmax(torch.stack(scores), dim=0)  # [D]
    return (features * alphas).sum(dim=1).clamp(min=0).reshape(trace.grid)


def cam(net: VisionTransformer, image: Tensor, target: int) -> Tensor:
    """CAM (Zhou et al., CVPR 2016, eq. 2) of an average-pooled ViT, without ReLU: w_c . x_n at every patch n.

    The head reads z = mean_n x_n. Where it normalises z first (fc_norm), the same affine map is applied to each patch:
    w_c . (gamma * (x_n - mean_D(x_n)) / sigma(z)), whose mean over n is y_c but for a constant of the net.
    """
    assert net.global_pool == "avg", "CAM needs average pooling"
    with torch.no_grad():
        tokens = net.forward_features(image[None])[0, net.num_prefix_tokens :]  # [P, D], the output of net.norm
        logits = net(image[None])[0]
    head: Any = net.head
    weight, constant = head.weight.detach()[target], head.bias.detach()[target]
    if isinstance(net.fc_norm, nn.LayerNorm):
        norm: Any = net.fc_norm
        sigma = torch.sqrt(tokens.mean(dim=0).var(correction=0) + norm.eps)
        constant = constant + weight @ norm.bias.detach()
        tokens = norm.weight.detach() * (tokens - tokens.mean(dim=1, keepdim=True)) / sigma
    else:
        assert isinstance(net.fc_norm, nn.Identity)
    values = tokens @ weight  # [P]
    torch.testing.assert_close(values.mean(), logits[target] - constant, rtol=1e-4, atol=1e-4)
    return values.reshape(net.patch_embed.dynamic_feat_size((image.shape[-2], image.shape[-1])))


def attention_flow(net: VisionTransformer, image: Tensor, target: int | None = None, start_layer: int = 0) -> Tensor:
    """Attention flow (Abnar & Zuidema, ACL 2020, section 3): the maximum flow from the readout tokens to each patch.

    The edge from token i of a layer's output to token j of its input has the capacity (mean_h A_ij + [i = j]) / 2; a
    source sends each token its share of what the head reads (1 / R with R tokens read alike). Only for nets with a
    handful of tokens.
    """
    trace = oracles.forward(net, image)
    layers = [attention.detach().double().mean(dim=0) for attention in trace.attention[start_layer:]]
    count = layers[0].shape[0]
    graph = networkx.DiGraph()
    for depth, attention in enumerate(layers):
        for i in range(count):
            for j in range(count):
                capacity = (attention[i, j].item() + (i == j)) / 2
                graph.add_edge((depth + 1, i), (depth, j), capacity=capacity)
    for i, weight in enumerate(oracles.readout_weights(net, count).double().mean(dim=0).tolist()):
        if weight > 0:
            graph.add_edge("source", (len(layers), i), capacity=weight)
    flows = [
        networkx.maximum_flow_value(graph, "source", (0, j), flow_func=networkx.algorithms.flow.edmonds_karp)
        for j in range(net.num_prefix_tokens, count)
    ]
    return torch.tensor(flows).reshape(trace.grid)
