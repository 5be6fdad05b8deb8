"""Attention flow: how much of a patch can reach the class token through the attentions of all layers."""

import warnings
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor, nn

from litcam.errors import InputError, check_at_least
from litcam.explainers.base import Explainer, check_layer, register
from litcam.vit.sdpa import AttentionCall
from litcam.vit.trace import AttentionTrace

_UNIT = 2**30  # of flow: scipy's algorithm counts in int32, and the source sends 1, give or take the rounding
_LONG = 60.0  # seconds that pass without a warning


@register("attention_flow")
class AttentionFlow(Explainer):
    """Attention flow (Abnar & Zuidema, ACL 2020, section 3): the maximum flow from the class token to each patch.

    The tokens of every layer are nodes, and token i of a layer's output is joined to token j of its input by an edge of
    capacity (Ā + I)/2 at (i, j), where Ā is the mean over the heads. The flow runs from the class token of the last
    layer to one patch of the input, for one patch after the other. Capacities are whole multiples of 2⁻³⁰. Knows no
    classes.

    Where the head reads several tokens (class and distillation token, all patches) it counts as one more layer: a
    source joined to each of them by an edge of its weight, 1/R in a mean of R tokens. With one token that is the
    paper's problem.

    The flow cannot exceed what its two ends let through: 1 at the class token, and (1 + Σ_i Ā_ij)/2 at patch j in the
    first layer. The deeper the net, the fewer patches have a narrower cut in between (in a random ViT-B/16 none), and
    the map then says no more than how much attention a patch receives in the first layer.

    Slow by nature: one maximum flow per patch and image, on one CPU core; ViT-B/16 at 224 by 224 pixels takes about
    5 seconds per image. The first problem is timed, and a warning tells the expected time if that is above a minute.

    Args:
        net: the model.
        start_layer: the first layer of the graph.
        max_edges: the largest graph that is tried, layers × tokens².

    Raises:
        InputError: if the net has no such layer, or where an image's graph has more edges.
    """

    class_specific = False

    def __init__(self, net: nn.Module, start_layer: int = 0, max_edges: int = 5_000_000) -> None:
        super().__init__(net)
        check_layer("start_layer", start_layer, len(self.vit.blocks))
        check_at_least("max_edges", max_edges)
        self.start_layer = start_layer
        self.max_edges = max_edges

    def read(self, call: AttentionCall) -> Tensor:
        return call.weights().mean(1)  # [B, H, N, N] -> [B, N, N]

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        layers = torch.stack(list(trace.readings[self][self.start_layer :]), dim=1)  # [B, L, N, N]
        edges = layers[0].numel()
        if edges > self.max_edges:
            raise InputError(
                f"attention_flow would need a graph of {edges:,} edges, and max_edges is {self.max_edges:,}: take a "
                "later start_layer or smaller images, or raise max_edges and wait."
            )
        patches = range(self.vit.num_prefix_tokens, layers.shape[-1])
        readout = trace.readout.weights.double().numpy()
        rows = layers.new_zeros(len(layers), layers.shape[-1])  # [B, N]
        for position, (row, attention) in enumerate(zip(rows, layers.cpu().double().numpy(), strict=True)):
            graph = flow_graph(attention, readout)
            if position == 0:
                _warn_if_long(graph, patches.start, len(patches) * len(layers))
            row[patches.start :] = row.new_tensor([flow(graph, patch) for patch in patches])
        return self.to_grid(trace, rows)[:, None]


def flow_graph(attention: NDArray[np.float64], readout: NDArray[np.float64]) -> csr_array:
    """The capacities between the tokens of all layers, as int32 multiples of 2⁻³⁰.

    Args:
        attention: Ā of the layers, [L, N, N], first layer first; rows sum to one.
        readout: the weights [N] of the tokens that the head reads.

    Returns:
        [M, M] with M = (L + 1)·N + 1: node l·N + i is token i of the input of layer l (of the output for l = L), and
        the last node is the source.
    """
    layers, tokens, _ = attention.shape
    layer, row, column = np.indices(attention.shape)
    read = readout.nonzero()[0]
    outputs = read + layers * tokens
    source = (layers + 1) * tokens
    tails = np.concatenate([((layer + 1) * tokens + row).ravel(), np.full(len(outputs), source)])
    heads = np.concatenate([(layer * tokens + column).ravel(), outputs])
    capacities = np.concatenate([((attention + np.eye(tokens)) / 2).ravel(), readout[read]])
    whole = np.rint(capacities * _UNIT).astype(np.int32)
    return coo_array((whole, (tails, heads)), shape=(source + 1, source + 1)).tocsr()


def flow(graph: csr_array, patch: int) -> float:
    """The maximum flow from the source of a :func:`flow_graph` to a token of the first layer's input."""
    source: int = graph.shape[0] - 1
    result: Any = maximum_flow(graph, source, patch)
    return float(result.flow_value / _UNIT)


def _warn_if_long(graph: csr_array, patch: int, problems: int) -> None:
    """Time one flow, and warn if so many of them take long."""
    started = perf_counter()
    flow(graph, patch)
    seconds = (perf_counter() - started) * problems
    if seconds > _LONG:
        warnings.warn(
            f"attention_flow solves {problems} maximum flow problems for this batch: about {seconds / 60:.0f} min.",
            stacklevel=2,
        )
