"""What comes through the door: images and classes of every kind are explained right, or refused in one sentence."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer
from torchvision.tv_tensors import Image

import litcam
from conftest import SMALL, make_images, make_net
from litcam.errors import InputError, UnsupportedModelError
from litcam.metrics import Perturbation

EXPLAINERS = [*litcam.list_explainers(), "captum:IntegratedGradients"]
ON_PIXELS = {"saliency", "rise", "captum:IntegratedGradients"}
SOME = ["rollout", "saliency"]  # one that differentiates and one that does not: all methods have one door
QUICK: dict[str, dict[str, Any]] = {"rise": {"num_masks": 8}, "captum:IntegratedGradients": {"n_steps": 2}}


def create(name: str, net: nn.Module) -> litcam.explainers.Explainer:
    """An explainer with options that spare time."""
    return litcam.create_explainer(name, net, **QUICK.get(name, {}))


def words(value: Any) -> str:
    """What a case is called: what is said about it, and the type of what was given."""
    return value if isinstance(value, str) else type(value).__name__


def its_net(name: str) -> nn.Module:
    """A small random net of seven classes that the explainer takes."""
    return make_net("average_pooled" if name == "cam" else "class_token")


def refusal(name: str, net: nn.Module, images: Any, targets: Any = None) -> str:
    """The sentence with which an explainer refuses its inputs."""
    explainer = create(name, net)
    with pytest.raises(InputError) as refused:
        explainer(images, targets)
    sentence = str(refused.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


# ---------------------------------------------------------------------------------------------------------------------
# Targets
# ---------------------------------------------------------------------------------------------------------------------

ONE_HOT = F.one_hot(torch.tensor([0, 2, 3]), 7)


@pytest.mark.parametrize("name", EXPLAINERS)
@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (ONE_HOT, r"targets [3, 7] of zeros and ones are labels, not class indices; targets.argmax(1)"),
        ([[0, 1], [2], [3]], "[B, K] with as many for every image; of the list"),
    ],
    ids=["one-hot", "ragged"],
)
def test_every_method_refuses_labels_and_ragged_lists_in_one_sentence(name: str, targets: Any, said: str) -> None:
    net = its_net(name)
    assert said in refusal(name, net, make_images(net), targets)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (ONE_HOT.int(), "are labels"),
        (ONE_HOT.tolist(), "are labels"),
        (ONE_HOT.numpy().astype(np.uint8), "are labels"),
        (torch.ones(3, 7, dtype=torch.int64), "are labels"),  # of several classes
        (F.one_hot(torch.tensor([0, 1, 1]), 9), "are labels"),  # of more classes than the net has
        (torch.zeros(3, 7), "not torch.float32; targets.argmax(1)"),
        (ONE_HOT.bool(), "not torch.bool; targets.argmax(1)"),
        (torch.tensor([0.0, 1.0, 2.0]), "not torch.float32; targets.long()"),
        (np.array([0.0, 1.0, 2.0]), "not torch.float64"),
        (torch.tensor([True, False, True]), "not torch.bool"),
        (torch.tensor([0j, 1, 2]), "not torch.complex64"),
        (["cat", "dog", "cow"], "of the list"),
        ([0, None, 1], "of the list"),
        ((0, "1", 2), "of the tuple"),
        ([torch.tensor([0]), torch.tensor([1, 2]), torch.tensor([3])], "of the list"),
        ([0, 2**70, 1], "of the list"),
        ({0: 1}, "of the dict"),
        ({0, 1, 2}, "of the set"),
        ("012", "of the str"),
        (np.array([0, None, 2]), "of the ndarray"),
        (np.array(["0", "1", "2"]), "of the ndarray"),
        (3, "have the shape []; [3] or [3, K] is needed"),
        (torch.tensor(3), "have the shape []"),
        ([0, 1], "have the shape [2]"),
        ([], "have the shape [0]"),
        (torch.zeros(3, 0, dtype=torch.int64), "have the shape [3, 0]"),
        (torch.zeros(3, 1, 1, dtype=torch.int64), "have the shape [3, 1, 1]"),
        ([0, -1, 2], "targets reach from -1 to 2, but the model has 7 classes: 0 to 6"),
        ([[0, 7], [1, 1], [2, 2]], "targets reach from 0 to 7"),
        (torch.zeros(3, dtype=torch.int64, device="meta"), "with its numbers in memory"),
        (torch.tensor([0, 1, 2]).to_sparse(), "a dense tensor"),
    ],
    ids=words,
)
@pytest.mark.parametrize("name", SOME)
def test_targets_that_are_no_classes_are_refused_in_one_sentence(name: str, targets: Any, said: str) -> None:
    net = its_net(name)
    assert said in refusal(name, net, make_images(net), targets)


@pytest.mark.parametrize(
    "targets",
    [
        [0, 1, 2],
        (0, 1, 2),
        range(3),
        np.array([2, 1, 0])[::-1],
        np.array([0, 1, 2], dtype=np.uint16),
        torch.tensor([0, 1, 2], dtype=torch.uint8),
        torch.tensor([0, 1, 2], dtype=torch.int32),
        [torch.tensor(0), torch.tensor(1), torch.tensor(2)],
        [np.int64(0), np.int64(1), np.int64(2)],
        torch.tensor([[0, 1, 2], [9, 9, 9]]).T[:, 0],
    ],
    ids=words,
)
def test_class_indices_are_taken_in_every_form(targets: Any) -> None:
    net = its_net("saliency")
    images, explainer = make_images(net), create("saliency", net)
    expected = explainer(images, torch.tensor([0, 1, 2]))
    explanation = explainer(images, targets)
    assert explanation.targets.dtype == torch.int64
    assert torch.equal(explanation.targets, expected.targets)
    assert torch.equal(explanation.heatmaps, expected.heatmaps)


@pytest.mark.parametrize(
    "targets", [[[0, 1], [2, 2], [6, 0]], np.array([[0, 1], [2, 2], [6, 0]])], ids=["list", "array"]
)
def test_nested_targets_are_several_classes_of_each_image(targets: Any) -> None:
    net = its_net("saliency")
    images, explainer = make_images(net), create("saliency", net)
    both = explainer(images, targets).heatmaps
    for position in range(2):
        one = explainer(images, [row[position] for row in targets]).heatmaps
        torch.testing.assert_close(both[:, position], one)


@pytest.mark.parametrize("rows", [[[0, 1]] * 3, [[0, 1], [1, 0], [0, 1]], [[0, 0], [1, 1], [0, 1]]])
def test_in_a_two_class_net_pairs_of_classes_are_no_labels(rows: list[list[int]]) -> None:
    net = timm.create_model("vit_tiny_patch16_224", pretrained=False, **{**SMALL, "num_classes": 2}).eval()
    images, explainer = make_images(net), create("saliency", net)
    explanation = explainer(images, rows)
    assert explanation.targets.tolist() == rows
    every = torch.stack([explainer(images, [c] * 3).heatmaps for c in (0, 1)], 1)
    expected = torch.stack([every[image, row] for image, row in enumerate(rows)])
    torch.testing.assert_close(explanation.heatmaps, expected)


@pytest.mark.parametrize("rows", [[list(range(7))] * 3, [[0, 1]] * 3, [[0, 0]] * 3, [[1, 0, 2, 0, 0, 0, 1]] * 3])
def test_all_classes_and_few_of_them_are_no_labels(rows: list[list[int]]) -> None:
    net = its_net("rollout")
    assert create("rollout", net)(make_images(net), rows).targets.tolist() == rows


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPLAINERS)
def test_an_empty_batch_has_an_empty_explanation(name: str) -> None:
    net = its_net(name)
    nothing, explainer = make_images(net)[:0], create(name, net)
    sides = (64, 64) if name in ON_PIXELS else (4, 4)
    for targets in (None, [], torch.zeros(0, dtype=torch.int64)):
        explanation = explainer(nothing, targets)
        assert explanation.heatmaps.shape == (0, *sides)
        assert explanation.heatmaps.dtype == torch.float32
        assert explanation.logits.shape == (0, 7)
        assert explanation.targets.shape == (0,)
        assert explanation.targets.dtype == torch.int64
        assert explanation.upsample((32, 48)).shape == (0, 32, 48)
    several = explainer(nothing, torch.zeros(0, 2, dtype=torch.int64))
    assert several.heatmaps.shape == (0, 2, *sides)
    assert several.upsample((32, 48)).shape == (0, 2, 32, 48)
    with pytest.raises(InputError, match=r"targets have the shape \[1\]; \[0\] or \[0, K\] is needed"):
        explainer(nothing, [1])


def test_an_empty_batch_of_images_that_the_net_does_not_take_is_refused() -> None:
    net = its_net("rollout")
    assert "32 by 32 pixels" in refusal("rollout", net, torch.zeros(0, 3, 32, 32))
    assert "4 channels" in refusal("rollout", net, torch.zeros(0, 4, 64, 64))


def test_a_metric_takes_an_empty_explanation() -> None:
    net = its_net("agcam")
    images = make_images(net)[:0]
    explanation = create("agcam", net)(images)
    metric = Perturbation(resamples=0)
    metric.update(net, images, explanation.upsample((64, 64)), explanation.targets, explanation.logits)
    assert metric.compute()["num_images"] == 0


@pytest.mark.parametrize("name", EXPLAINERS)
@pytest.mark.parametrize("channels", [1, 4])
def test_every_method_names_the_channels_that_the_net_does_not_take(name: str, channels: int) -> None:
    sentence = refusal(name, its_net(name), torch.zeros(2, channels, 64, 64))
    assert sentence == f"images have {channels} channels, but VisionTransformer takes 3."


class Grey(nn.Module):
    """A user's module that makes three channels of one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net("class_token")

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.expand(-1, 3, -1, -1))


class Logits(nn.Module):
    """A user's module around a classifier of transformers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        config = transformers.ViTConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=96,
            image_size=64,
            num_channels=channels,
        )
        self.net = transformers.ViTForImageClassification(config)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).logits


def torchvision_vit() -> nn.Module:
    return VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=7
    )


OF_CHANNELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "one": (lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False, in_chans=1, **SMALL), 1),
    "five": (lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False, in_chans=5, **SMALL), 5),
    "twenty": (lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False, in_chans=20, **SMALL), 20),
    "naflex": (
        lambda: timm.create_model(
            "naflexvit_base_patch16_gap", pretrained=False, embed_dim=48, depth=2, num_heads=3, in_chans=2
        ),
        2,
    ),
    "torchvision": (torchvision_vit, 3),
    "transformers": (lambda: Logits(2), 2),
    "a root that makes three of one": (Grey, 1),  # and takes three
}


@pytest.mark.parametrize("kind", OF_CHANNELS)
@pytest.mark.parametrize("name", SOME)
def test_nets_of_any_number_of_channels_are_explained_and_others_named(kind: str, name: str) -> None:
    make, channels = OF_CHANNELS[kind]
    net = make().eval()
    explanation = create(name, net)(torch.randn(2, channels, 64, 64))
    assert explanation.heatmaps.shape == ((2, 64, 64) if name in ON_PIXELS else (2, 4, 4))
    sentence = refusal(name, net, torch.zeros(2, channels + 3, 64, 64))
    taken = "1 or 3" if isinstance(net, Grey) else channels
    assert sentence == f"images have {channels + 3} channels, but {type(net).__name__} takes {taken}."


def test_an_error_of_the_users_own_code_stays_as_it_is() -> None:
    net = its_net("rollout")

    def fail(*arguments: object) -> None:
        raise RuntimeError("the user's own")

    net.blocks[1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="the user's own"):
        create("rollout", net)(torch.zeros(1, 3, 64, 64))


IMAGES = make_images(make_net("class_token"))


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ((IMAGES * 50).to(torch.uint8), "not torch.uint8 [3, 3, 64, 64]: scale and normalise"),
        (IMAGES.to(torch.complex64), "not torch.complex64"),
        (IMAGES.to(torch.float8_e4m3fn), "not torch.float8_e4m3fn"),
        (IMAGES[0], "not torch.float32 [3, 64, 64]: images[None] makes a batch"),
        (IMAGES[None], "not torch.float32 [1, 3, 3, 64, 64]"),
        (IMAGES.numpy(), "not a numpy array float32 [3, 3, 64, 64]: torch.from_numpy"),
        (list(IMAGES), "not a list of tensors: torch.stack"),
        ([], "not list"),
        ("image.png", "not str"),
        (None, "not NoneType"),
        (IMAGES.to_sparse(), "of the layout torch.sparse_coo"),
        (torch.nested.nested_tensor(list(IMAGES)), "not a nested tensor"),
        (IMAGES.to("meta"), "on the meta device, where no pixels are"),
        (IMAGES[..., :0, :0], "images [3, 3, 0, 0] have no pixels"),
        (IMAGES[:, :0], "images [3, 0, 64, 64] have no pixels"),
        (IMAGES.where(IMAGES < 3, torch.inf), "NaN or infinite pixels at batch index"),
        (torch.full_like(IMAGES, torch.nan), "NaN or infinite pixels at batch index 0, 1, 2"),
    ],
    ids=words,
)
@pytest.mark.parametrize("name", SOME)
def test_what_is_no_batch_of_images_is_refused_in_one_sentence(name: str, images: Any, said: str) -> None:
    assert said in refusal(name, its_net(name), images)


def inference_tensor(images: Tensor) -> Tensor:
    """The same images, made under inference_mode."""
    with torch.inference_mode():
        return images.clone()


@cache
def plain(name: str) -> tuple[litcam.explainers.Explainer, Tensor]:
    """An explainer, and its maps of plain images."""
    explainer = create(name, its_net(name))
    return explainer, explainer(IMAGES, [0, 1, 2]).heatmaps


MAKES: dict[str, Callable[[Tensor], Tensor]] = {
    "leaf": lambda images: images.clone().requires_grad_(),
    "in a graph": lambda images: images.clone().requires_grad_() * 1,
    "parameter": nn.Parameter,
    "tv_tensor": Image,
    "channels last": lambda images: images.to(memory_format=torch.channels_last),
    "transposed": lambda images: images.mT.contiguous().mT,
    "cut": lambda images: torch.cat([images, images], 3)[..., :64],
    "inference": inference_tensor,
}
EVERYWHERE = ("leaf", "transposed", "inference")  # the others are known by what the door makes of them


@pytest.mark.parametrize(
    ("name", "make"), [(name, make) for name in EXPLAINERS for make in MAKES if name in SOME or make in EVERYWHERE]
)
def test_images_of_every_make_have_the_maps_of_plain_ones(name: str, make: str) -> None:
    explainer, expected = plain(name)
    explanation = explainer(MAKES[make](IMAGES), [0, 1, 2])
    assert type(explanation.heatmaps) is type(explanation.logits) is Tensor
    assert not explanation.heatmaps.requires_grad
    assert not explanation.logits.requires_grad
    torch.testing.assert_close(explanation.heatmaps, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", EXPLAINERS)
def test_an_image_that_is_expanded_to_a_batch_is_explained_as_copies_of_it(name: str) -> None:
    explainer = create(name, its_net(name))
    expected = explainer(IMAGES[:1].repeat(3, 1, 1, 1), [0, 1, 2]).heatmaps
    heatmaps = explainer(IMAGES[:1].expand(3, -1, -1, -1), [0, 1, 2]).heatmaps
    torch.testing.assert_close(heatmaps, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_net_without_weights_is_named() -> None:
    net = its_net("rollout").to("meta")
    assert refusal("rollout", net, IMAGES) == (
        "VisionTransformer has no weights: its parameters are on the meta device."
    )


# ---------------------------------------------------------------------------------------------------------------------
# Scripted nets
# ---------------------------------------------------------------------------------------------------------------------


class Root(nn.Module):
    """A user's module around a net."""

    def __init__(self, net: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net
        self.head = nn.Identity() if head is None else head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.net(images))


@pytest.fixture(scope="module")
def scripted() -> nn.Module:
    """A scripted net."""
    return torch.jit.script(make_net("class_token"))


@pytest.fixture(scope="module")
def traced() -> nn.Module:
    """A traced net."""
    return torch.jit.trace(make_net("class_token"), IMAGES)


@pytest.mark.parametrize("name", EXPLAINERS)
@pytest.mark.parametrize("make", ["scripted", "traced"])
def test_scripted_nets_are_refused_in_one_sentence(name: str, make: str, request: pytest.FixtureRequest) -> None:
    net = request.getfixturevalue(make)
    for given, what in ((net, "The net"), (Root(net), "net of Root")):
        with pytest.raises(UnsupportedModelError, match=f"^{what} is scripted or traced .* made from.$"):
            litcam.create_explainer(name, given)


@pytest.mark.parametrize("part", ["patch_embed", "blocks.1", "blocks.1.attn", "blocks.1.mlp", "head"])
def test_a_scripted_part_of_a_vision_transformer_is_named(part: str, traced: nn.Module) -> None:
    net = make_net("class_token")
    net.set_submodule(part, traced.get_submodule(part))
    with pytest.raises(UnsupportedModelError, match=f"^{part} of VisionTransformer is scripted"):
        litcam.create_explainer("agcam", net)


def test_a_scripted_head_outside_the_vision_transformer_is_taken() -> None:
    head, net = nn.Linear(7, 4), make_net("class_token")
    plain, scripted = (
        create("agcam", Root(copy.deepcopy(net), part))(IMAGES, [0, 1, 2]).heatmaps
        for part in (head, torch.jit.script(head))
    )
    torch.testing.assert_close(scripted, plain)
