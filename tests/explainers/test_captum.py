"""The captum adapter: against closed forms and loops of our own, and what it refuses."""

import inspect
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conftest import count_images, make_images, make_net
from litcam.errors import InputError, UnsupportedModelError
from litcam.explainers.captum import SUPPORTED, Captum, captum_explainer

FAST = {
    "FeatureAblation": {},
    "GradientShap": {"n_samples": 3},
    "InputXGradient": {},
    "IntegratedGradients": {"n_steps": 4},
    "KernelShap": {"n_samples": 8},
    "Lime": {"n_samples": 8},
    "Occlusion": {},
    "Saliency": {},
    "ShapleyValueSampling": {"n_samples": 1},
}
RANDOM = ["GradientShap", "KernelShap", "Lime", "ShapleyValueSampling"]


@pytest.fixture(params=SUPPORTED)
def attribution(request: pytest.FixtureRequest) -> str:
    """Every supported method of captum in turn."""
    pytest.importorskip("captum")
    return request.param


@pytest.fixture
def captum() -> None:
    """For tests that call captum."""
    pytest.importorskip("captum")


def gradient(net: nn.Module, image: Tensor, target: int) -> Tensor:
    leaf = image.clone().requires_grad_()
    return torch.autograd.grad(net(leaf[None])[0, target], leaf)[0]


def logit(net: nn.Module, image: Tensor, target: int) -> Tensor:
    with torch.no_grad():
        return net(image[None])[0, target]


@pytest.mark.usefixtures("captum")
@pytest.mark.parametrize("reduce", ["sum", "abs_sum", "abs_max"])
def test_input_times_gradient_equals_our_own(net: nn.Module, reduce: str) -> None:
    images, targets = make_images(net, 2), [0, 6]
    heatmaps = Captum(net, "InputXGradient", reduce=reduce)(images, torch.tensor(targets)).heatmaps
    for heatmap, image, target in zip(heatmaps, images, targets, strict=True):
        product = image * gradient(net, image, target)  # [3, H, W]
        expected = {"sum": product.sum(0), "abs_sum": product.abs().sum(0), "abs_max": product.abs().amax(0)}[reduce]
        torch.testing.assert_close(heatmap, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("captum")
def test_saliency_equals_our_own_gradient(net: nn.Module) -> None:
    image = make_images(net, 1)
    heatmap = Captum(net, "Saliency", reduce="abs_max")(image, torch.tensor([3])).heatmaps[0]
    torch.testing.assert_close(heatmap, gradient(net, image[0], 3).abs().amax(0), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("captum")
@pytest.mark.parametrize("baselines", [0, 0.3])
def test_integrated_gradients_sum_to_the_difference_of_the_logits(net: nn.Module, baselines: float) -> None:
    image = make_images(net, 1)
    with torch.no_grad():
        differences = (net(image) - net(torch.full_like(image, baselines)))[0]  # [C]
    target = differences.abs().argmax()
    explainer = Captum(net, "IntegratedGradients", n_steps=200, baselines=baselines)
    heatmap = explainer(image, target[None]).heatmaps[0]
    torch.testing.assert_close(heatmap.sum(), differences[target], rtol=1e-2, atol=0)


@pytest.mark.usefixtures("captum")
@pytest.mark.parametrize("name", ["Occlusion", "FeatureAblation"])
def test_hiding_patches_equals_a_loop(net: nn.Module, name: str) -> None:
    image = make_images(net, 1)[0]
    heatmap = Captum(net, name)(image[None], torch.tensor([5])).heatmaps[0]
    expected = torch.zeros_like(heatmap)
    for top in range(0, image.shape[1], 16):
        for left in range(0, image.shape[2], 16):
            patch = (slice(top, top + 16), slice(left, left + 16))
            hidden = image.clone()
            hidden[:, *patch] = 0
            expected[patch] = 3 * (logit(net, image, 5) - logit(net, hidden, 5))  # once per channel
    torch.testing.assert_close(heatmap, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("captum")
def test_the_users_window_is_also_the_stride(class_token_net: nn.Module) -> None:
    image = make_images(class_token_net, 1)
    window = Captum(class_token_net, "Occlusion", sliding_window_shapes=[3, 32, 32])(image).heatmaps[0]
    halves = window.unflatten(0, (2, 32)).unflatten(2, (2, 32))  # [2, 32, 2, 32]
    assert (halves == halves[:, :1, :, :1]).all()
    assert len(window.unique()) == 4


@pytest.mark.usefixtures("captum")
def test_sampled_shapley_values_sum_to_the_difference_of_the_logits(class_token_net: nn.Module) -> None:
    image = make_images(class_token_net, 1)
    heatmap = Captum(class_token_net, "ShapleyValueSampling", n_samples=2)(image, torch.tensor([1])).heatmaps[0]
    expected = logit(class_token_net, image[0], 1) - logit(class_token_net, torch.zeros_like(image[0]), 1)
    torch.testing.assert_close(heatmap[8::16, 8::16].sum() / 3, expected, rtol=1e-4, atol=1e-4)


def test_an_image_has_the_same_map_alone_and_in_a_batch(attribution: str, class_token_net: nn.Module) -> None:
    images, targets = make_images(class_token_net), torch.tensor([1, 0, 4])
    explainer = Captum(class_token_net, attribution, **FAST[attribution])
    together = explainer(images, targets).heatmaps
    assert together.shape == (3, 64, 64)
    assert together.isfinite().all()
    assert together.flatten(1).std(1).min() > 0
    alone = torch.cat([explainer(images[i : i + 1], targets[i : i + 1]).heatmaps for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


def test_several_classes_equal_one_class_at_a_time(attribution: str, class_token_net: nn.Module) -> None:
    images, targets = make_images(class_token_net, 2), torch.tensor([[0, 1], [6, 2]])
    explainer = Captum(class_token_net, attribution, **FAST[attribution])
    together = explainer(images, targets).heatmaps
    assert together.shape == (2, 2, 64, 64)
    for position in range(2):
        torch.testing.assert_close(together[:, position], explainer(images, targets[:, position]).heatmaps)


@pytest.mark.parametrize("attribution", RANDOM, indirect=True)
def test_the_seed_decides_what_random_methods_draw(attribution: str, class_token_net: nn.Module) -> None:
    image, target = make_images(class_token_net, 1), torch.tensor([1])
    maps = [Captum(class_token_net, attribution, seed=seed, **FAST[attribution])(image, target) for seed in (0, 0, 1)]
    assert torch.equal(maps[0].heatmaps, maps[1].heatmaps)
    assert not torch.allclose(maps[0].heatmaps, maps[2].heatmaps, rtol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 5])
@pytest.mark.parametrize("attribution", [name for name in SUPPORTED if name != "GradientShap"], indirect=True)
def test_batch_size_bounds_the_forwards_and_is_used(
    attribution: str, class_token_net: nn.Module, batch_size: int
) -> None:
    explainer = Captum(class_token_net, attribution, batch_size=batch_size, **FAST[attribution])
    sizes = count_images(class_token_net.head)
    explainer(make_images(class_token_net, 1))
    wanted = {"InputXGradient": 1, "Saliency": 1, "IntegratedGradients": 4}.get(attribution, 5)
    assert max(sizes) == min(wanted, batch_size)


class Reversed(nn.Module):
    """A module of a user: a net whose classes are in the opposite order."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).flip(1)


def test_a_module_is_explained_through_its_own_logits(attribution: str, class_token_net: nn.Module) -> None:
    image, options = make_images(class_token_net, 1), FAST[attribution]
    expected = Captum(class_token_net, attribution, **options)(image, torch.tensor([6])).heatmaps
    actual = Captum(Reversed(class_token_net), attribution, **options)(image, torch.tensor([0])).heatmaps
    torch.testing.assert_close(actual, expected)


class Failure(RuntimeError):
    """Raised on purpose in the middle of a forward."""


@pytest.mark.parametrize("fails", [False, True])
def test_random_generators_hooks_and_gradients_are_left_alone(
    attribution: str, class_token_net: nn.Module, fails: bool
) -> None:
    net, forwards = class_token_net, []

    def count(block: nn.Module, arguments: object, output: Tensor) -> Tensor:
        forwards.append(1)
        if fails and len(forwards) == 2:  # the first is the recorded one, the second captum's
            raise Failure
        return output.clone()  # a hook that changes something fires in every forward

    net.blocks[1].register_forward_hook(count)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    explainer, images = Captum(net, attribution, **FAST[attribution]), make_images(net, 1)
    if fails:
        with pytest.raises(Failure):
            explainer(images)
    else:
        explainer(images)
    assert torch.equal(torch.get_rng_state(), torch_state)
    numpy_now = np.random.get_state()  # noqa: NPY002
    assert numpy_now[2:] == numpy_state[2:]
    assert (numpy_now[1] == numpy_state[1]).all()
    assert [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules()] == hooks
    assert not images.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_it_works_with_frozen_weights_under_inference_mode(attribution: str, class_token_net: nn.Module) -> None:
    targets = torch.tensor([1])
    explainer = Captum(class_token_net, attribution, **FAST[attribution])
    expected = explainer(make_images(class_token_net, 1), targets).heatmaps
    class_token_net.requires_grad_(False)
    with torch.inference_mode():
        actual = explainer(make_images(class_token_net, 1), targets.clone()).heatmaps
    torch.testing.assert_close(actual, expected)


def test_a_method_by_name_is_a_class_whose_signature_lists_its_options(attribution: str) -> None:
    net = make_net("class_token")
    explainer = captum_explainer(attribution)
    assert explainer.name == f"captum:{attribution}"
    options = list(inspect.signature(explainer).parameters)
    assert options[:4] == ["net", "reduce", "seed", "batch_size"]
    assert set(FAST[attribution]) <= set(options)
    assert not {"self", "inputs", "target", "attribution", "options", "kwargs"} & set(options)
    image = make_images(net, 1)
    by_name = explainer(net, reduce="abs_sum", **FAST[attribution])(image).heatmaps
    assert torch.equal(by_name, Captum(net, attribution, reduce="abs_sum", **FAST[attribution])(image).heatmaps)


@pytest.mark.usefixtures("captum")
@pytest.mark.parametrize(
    ("attribution", "options", "message"),
    [
        ("IntegratedGradients", {"steps": 5}, "captum:IntegratedGradients has no option 'steps'; it has .*n_steps"),
        ("Saliency", {"target": 5}, "captum:Saliency has no option 'target'; it has abs"),
        ("Saliency", {"reduce": "mean"}, "reduce is 'mean'; choose one of sum, abs_sum, abs_max"),
        ("Occlusion", {"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_wrong_options_are_refused_when_the_explainer_is_made(
    class_token_net: nn.Module, attribution: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Captum(class_token_net, attribution, **options)


@pytest.mark.usefixtures("captum")
def test_a_value_that_captum_refuses_is_told_in_its_words(class_token_net: nn.Module) -> None:
    explainer = Captum(class_token_net, "Occlusion", sliding_window_shapes=(3, 99, 99))
    with pytest.raises(InputError, match="captum:Occlusion does not take its options: Sliding window dimensions"):
        explainer(make_images(class_token_net, 1))


@pytest.mark.parametrize(
    ("attribution", "reason"),
    [
        ("DeepLift", "its rules know neither GELU nor LayerNorm"),
        ("LRP", "the explainer relevance has"),
        ("NoiseTunnel", "it wraps another method"),
        ("LayerGradCam", "does not attribute to the image"),
        ("NeuronGradient", "does not attribute to the image"),
        ("Sailency", "captum has no such method"),
        ("", "captum has no such method"),
    ],
)
def test_methods_that_cannot_serve_are_refused_with_the_reason(
    class_token_net: nn.Module, attribution: str, reason: str
) -> None:
    message = f"captum:{attribution} is not supported: .*{reason}.*; choose one of FeatureAblation, GradientShap"
    with pytest.raises(InputError, match=message):
        Captum(class_token_net, attribution)
    with pytest.raises(InputError, match=message):
        captum_explainer(attribution)


@pytest.mark.usefixtures("captum")
@pytest.mark.parametrize("attribution", ["DeepLift", "GuidedBackprop", "Deconvolution"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of captum about its hooks
def test_refused_methods_give_the_plain_gradient_indeed(class_token_net: nn.Module, attribution: str) -> None:
    attr = pytest.importorskip("captum.attr")
    image = make_images(class_token_net, 1)
    refused = getattr(attr, attribution)(class_token_net).attribute(image.clone().requires_grad_(), target=1)
    expected = gradient(class_token_net, image[0], 1)
    if attribution == "DeepLift":
        expected = expected * image[0]
    torch.testing.assert_close(refused[0].detach(), expected, rtol=1e-3, atol=1e-5)


def test_without_captum_the_remedy_is_told(class_token_net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    for make in (lambda: Captum(class_token_net, "Saliency"), lambda: captum_explainer("Saliency")):
        with pytest.raises(InputError, match=r'captum is not installed; pip install "litcam\[captum\]"'):
            make()


@pytest.mark.usefixtures("captum")
def test_a_model_without_a_vision_transformer_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="holds no Vision Transformer"):
        Captum(nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), "Saliency")
