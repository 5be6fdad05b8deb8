"""Attention flow against networkx, and on graphs small enough to be solved by hand."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

import gradient_free_oracles as oracles
from conftest import NETS, make_images
from litcam.errors import InputError
from litcam.explainers import attention_flow
from litcam.explainers.attention_flow import AttentionFlow, flow, flow_graph

KINDS = ["class_token", "distilled", "registers", "average_pooled"]


def tiny_net(kind: str) -> nn.Module:
    """A random net of two blocks and 2 by 2 patches: networkx needs a second for one image of it."""
    name, arguments = NETS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, pretrained=False, **{**arguments, "img_size": 32, "depth": 2})
        for parameter in net.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.2)
    return net.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start_layer", [0, 1])
def test_it_equals_networkx(kind: str, start_layer: int) -> None:
    net = tiny_net(kind)
    images = make_images(net, 2)
    heatmaps = AttentionFlow(net, start_layer=start_layer)(images).heatmaps
    expected = torch.stack([oracles.attention_flow(net, image, start_layer=start_layer) for image in images])
    assert expected.std() > 1e-3, "the oracle's map is flat: the comparison would prove nothing"
    torch.testing.assert_close(heatmaps, expected, rtol=0, atol=1e-6)


def flows(attention: list[list[list[float]]], readout: list[float] | None = None) -> list[float]:
    """The flow to each token of hand-made layers; the head reads the first token, if it is not told otherwise."""
    graph = flow_graph(np.array(attention), np.array(readout or [1.0] + [0.0] * (len(attention[0]) - 1)))
    return [flow(graph, token) for token in range(len(attention[0]))]


def test_one_layer_gives_half_of_the_attention_and_half_to_the_token_itself() -> None:
    attention = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0], [0.1, 0.2, 0.7]]
    assert flows([attention]) == pytest.approx([0.75, 0.125, 0.125], abs=1e-8)


def test_two_layers_take_every_path_up_to_its_narrowest_edge() -> None:
    even = [[0.5, 0.5], [0.5, 0.5]]  # capacities 0.75 to the token itself, 0.25 to the other
    # To token 1: through token 0 min(0.75, 0.25), through token 1 min(0.25, 0.75). Rollout would multiply: 0.375.
    assert flows([even, even]) == pytest.approx([1.0, 0.5], abs=1e-8)


def test_the_first_layer_is_the_one_at_the_patches() -> None:
    first, last = [[1.0, 0.0], [0.0, 1.0]], [[0.2, 0.8], [0.0, 1.0]]
    assert flows([first, last]) == pytest.approx([0.6, 0.4], abs=1e-8)
    assert flows([last, first]) == pytest.approx([0.6, 0.4], abs=1e-8)
    asymmetric = [[0.2, 0.8], [1.0, 0.0]]  # token 1 gives half of itself away to token 0
    # From 0 to 0: 0.6 directly and min(0.4, 0.5) by way of token 1, if that layer is the first (at the patches).
    assert flows([asymmetric, last]) == pytest.approx([1.0, 0.8], abs=1e-8)
    assert flows([last, asymmetric]) == pytest.approx([0.6, 0.8], abs=1e-8)


def test_several_readout_tokens_share_one_unit() -> None:
    identity = [[1.0, 0.0], [0.0, 1.0]]
    assert flows([identity], [0.5, 0.5]) == pytest.approx([0.5, 0.5], abs=1e-8)
    assert flows([identity], [0.25, 0.75]) == pytest.approx([0.25, 0.75], abs=1e-8)


def test_a_long_calculation_is_announced_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny_net("class_token")
    monkeypatch.setattr(attention_flow, "_LONG", 0.0)
    with pytest.warns(UserWarning, match=r"attention_flow solves 8 maximum flow problems .* about \d+ min"):
        AttentionFlow(net)(make_images(net, 2))


@pytest.mark.filterwarnings("error")
def test_a_short_calculation_is_not_announced() -> None:
    net = tiny_net("class_token")
    AttentionFlow(net)(make_images(net, 2))


def test_a_graph_above_the_cap_is_refused_and_the_cap_can_be_raised() -> None:
    net = tiny_net("class_token")  # 2 layers, 5 tokens: 50 edges
    AttentionFlow(net, max_edges=50)(make_images(net, 2))
    with pytest.raises(InputError, match="a graph of 50 edges, and max_edges is 49: take a later start_layer"):
        AttentionFlow(net, max_edges=49)(make_images(net, 2))
    AttentionFlow(net, start_layer=1, max_edges=49)(make_images(net, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_layer": 2}, "start_layer is 2, but the net has the layers 0 to 1"),
        ({"max_edges": 0}, "max_edges is 0; at least 1 is needed"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AttentionFlow(tiny_net("class_token"), **options)
