"""Raw attention, rollout and the controls: against oracles, and for what they promise."""

import pytest
import torch
from torch import nn

import litcam
import oracles
from conftest import make_images
from litcam.errors import InputError
from litcam.explainers import parse_explainer


@pytest.mark.parametrize("options", [{}, {"normalize": "sigmoid"}, {"layer": -1}, {"layer": 0, "normalize": "sigmoid"}])
def test_raw_attention_equals_the_oracle(net: nn.Module, options: dict[str, object]) -> None:
    images = make_images(net)
    heatmaps = litcam.create_explainer("raw_attention", net, **options)(images).heatmaps
    expected = torch.stack([oracles.raw_attention(net, image, **options) for image in images])
    torch.testing.assert_close(heatmaps, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("start_layer", [0, 1])
def test_rollout_equals_the_oracle(net: nn.Module, start_layer: int) -> None:
    images = make_images(net)
    heatmaps = litcam.create_explainer("rollout", net, start_layer=start_layer)(images).heatmaps
    expected = torch.stack([oracles.rollout(net, image, start_layer=start_layer) for image in images])
    torch.testing.assert_close(heatmaps, expected, rtol=1e-5, atol=1e-7)


def test_the_random_map_follows_from_seed_and_image_alone(class_token_net: nn.Module) -> None:
    images = make_images(class_token_net)
    first, second = (litcam.create_explainer("random", class_token_net, seed=seed) for seed in (0, 1))
    together = first(images).heatmaps
    assert torch.equal(together[1], first(images[1:2]).heatmaps[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, second(images).heatmaps)


def test_the_center_map_is_highest_in_the_middle_and_symmetric(net: nn.Module) -> None:
    heatmap = litcam.create_explainer("center", net)(make_images(net, 1)).heatmaps[0]
    rows, columns = heatmap.shape
    torch.testing.assert_close(heatmap, heatmap.flip(0).flip(1))
    assert heatmap.max() == heatmap[rows // 2, columns // 2]
    assert heatmap.min() == heatmap[0, 0]


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("rollout", "rollout", {}),
        ("agcam:gradient=full:head_fusion=max", "agcam", {"gradient": "full", "head_fusion": "max"}),
        ("reciprocam:keep_class_token=false", "reciprocam", {"keep_class_token": False}),
        ("raw_attention:layer=-1", "raw_attention", {"layer": -1}),
        ("gradcam_plusplus:eps=1e-6", "gradcam_plusplus", {"eps": 1e-6}),
        ("captum:Occlusion:strides=[1, 2, 2]", "captum:Occlusion", {"strides": [1, 2, 2]}),
    ],
)
def test_a_word_of_the_command_line_names_a_method_and_its_options(
    text: str, name: str, options: dict[str, object]
) -> None:
    assert parse_explainer(text) == (name, options)


@pytest.mark.parametrize("text", ["agcam:gradient", "agcam:radient=full", "agcamm", "captum", "captum:Occlusion:x=1"])
def test_a_word_that_names_none_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_explainer(text)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rollout", {"start_layer": 3}, "start_layer is 3, but the net has the layers 0 to 2"),
        ("raw_attention", {"layer": -4}, "layer is -4"),
        ("raw_attention", {"normalize": "softmin"}, "choose one of softmax, sigmoid"),
        ("agcam", {"gradient": "half"}, "choose one of skip, full"),
        (
            "agcam",
            {"headfusion": "sum"},
            "agcam has no option 'headfusion'; it has gradient, head_fusion, layer_fusion",
        ),
        ("center", {"sigma": 0.0}, "sigma is 0.0"),
        ("gradcamm", {}, "There is no explainer 'gradcamm'; choose one of agcam"),
    ],
)
def test_wrong_names_and_options_are_told_what_there_is(
    class_token_net: nn.Module, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        litcam.create_explainer(name, class_token_net, **options)
