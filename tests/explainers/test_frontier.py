"""Evidence, LibraGrad, LeGrad, TokenTM, token dropping and balanced gradients: oracles, and sums that are the logit."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from test_models import FAMILIES, images_for, make_family
from torch import Tensor, nn

import frontier_oracles
import litcam
import oracles
from conftest import NETS, SMALL, make_images, make_net, relative_error
from litcam.errors import InputError, UnsupportedModelError
from litcam.explainers.evidence import Evidence
from litcam.explainers.legrad import LeGrad
from litcam.explainers.libragrad import LibraGrad
from litcam.vit.recorder import record

TARGETS = torch.tensor([[0, 3], [6, 2]])
POOLED = ("average_pooled", "average_pooled_one_norm")


def uneven(net: nn.Module) -> nn.Module:
    """The net with biases and scales away from 0 and 1, so that their terms count."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1:
                noise = 0.2 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise + (1 if name.endswith(("weight", "gamma")) else 0))
    return net


def evidence(net: nn.Module, image: Tensor, target: int) -> Tensor:
    return frontier_oracles.grid(net, frontier_oracles.evidence(net, image, target)[0])


def fullgrad(blocks: slice, score: str) -> Callable[..., Tensor]:
    def oracle(net: nn.Module, image: Tensor, target: int) -> Tensor:
        products, _, _ = frontier_oracles.balanced(net, image, target, score)
        biases = frontier_oracles.bias_tokens(net, image, target, score)
        return frontier_oracles.grid(net, torch.stack(products[blocks]).sum(0) + biases)

    return oracle


def input_gradient(net: nn.Module, image: Tensor, target: int) -> Tensor:
    return frontier_oracles.grid(net, frontier_oracles.balanced(net, image, target, "logit")[0][0])


def legrad(layers: int, readout: str = "mean") -> Callable[..., Tensor]:
    return lambda net, image, target: frontier_oracles.legrad(net, image, target, layers, readout)


ORACLES: dict[str, tuple[Callable[..., Tensor], str, dict[str, Any]]] = {
    "evidence": (evidence, "evidence", {}),
    "evidence, positive": (lambda *arguments: evidence(*arguments).relu(), "evidence", {"sign": "positive"}),
    "fullgrad plus": (fullgrad(slice(None), "probability"), "libragrad", {}),
    "fullgrad": (fullgrad(slice(1), "logit"), "libragrad", {"form": "fullgrad", "score": "logit"}),
    "input times gradient": (input_gradient, "libragrad", {"form": "input_gradient", "score": "logit"}),
    "legrad": (legrad(2), "legrad", {}),
    "legrad, all layers": (legrad(3), "legrad", {"layers": None}),
    "legrad, class token": (legrad(2, "class_token"), "legrad", {"readout": "class_token"}),
    "tokentm": (frontier_oracles.tokentm, "tokentm", {}),
    "token dropping": (frontier_oracles.token_dropping, "token_dropping", {}),
    "token dropping, logit": (
        lambda *arguments: frontier_oracles.token_dropping(*arguments, "logit"),
        "token_dropping",
        {"score": "logit", "batch_size": 5},
    ),
}


def expected_maps(oracle: Callable[..., Tensor], net: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    pairs = zip(images, targets.tolist(), strict=True)
    return torch.stack([torch.stack([oracle(net, image, target) for target in row]) for image, row in pairs])


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("case", ORACLES)
def test_every_class_of_every_image_equals_the_oracle_in_both_precisions(case: str, kind: str) -> None:
    oracle, name, options = ORACLES[case]
    net = uneven(make_net(kind))
    images = make_images(net, 2)
    if options.get("readout") == "class_token" and kind in POOLED:
        with pytest.raises(UnsupportedModelError, match=r"no class token .* readout='mean' takes every model"):
            litcam.create_explainer(name, net, **options)(images, TARGETS)
        return
    single = litcam.create_explainer(name, net, **options)(images, TARGETS).heatmaps
    net, images = net.double(), images.double()
    expected = expected_maps(oracle, net, images, TARGETS)
    explainer = litcam.create_explainer(name, net, **options)
    with torch.no_grad():
        double = explainer.heatmaps(explainer.trace(images), TARGETS)
    assert relative_error(single, expected.float()) < 1e-5
    assert double.dtype == torch.float64
    assert relative_error(double, expected) < 1e-10


# ---------------------------------------------------------------------------------------------------------------------
# Completeness
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("method", [Evidence, LibraGrad])
def test_contributions_add_up_to_the_logits(method: Any, kind: str) -> None:
    net: Any = uneven(make_net(kind)).double()
    images, classes = make_images(net, 2).double(), torch.arange(7).expand(2, -1)
    explainer = method(net)
    contributions = explainer.contributions(explainer.trace(images), classes)
    logits = net(images).detach()
    total = contributions.tokens.sum(-1) + contributions.rest
    torch.testing.assert_close(total, logits, rtol=1e-10, atol=1e-12)
    assert contributions.error().max() < 1e-10
    biases = [
        [
            frontier_oracles.evidence(net, image, c)[1]
            if method is Evidence
            else frontier_oracles.balanced(net, image, c)[1]
            for c in range(7)
        ]
        for image in images
    ]
    torch.testing.assert_close(contributions.rest, torch.tensor(biases).double(), rtol=1e-6, atol=1e-8)


def test_without_surrogates_gradients_miss_the_logit() -> None:
    net = uneven(make_net("class_token")).double()
    image = make_images(net, 1)[0].double()
    steps = frontier_oracles.forward(net, image)
    score = steps.logits[0]
    (gradient,) = frontier_oracles.gradients(score, steps.inputs[:1])
    total = (gradient * steps.inputs[0]).sum() + frontier_oracles.bias_term(net, score)
    assert (total - score).abs() > 0.05 * score.abs()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [Evidence, LibraGrad])
def test_contributions_add_up_in_every_family(method: Any, family: str) -> None:
    net = make_family(family)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.ndim == 1 and "bias" in name:
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(3))
    explainer = method(net)
    assert explainer.contributions(explainer.trace(images_for(net)), TARGETS).error().max() < 1e-5


def with_activation(kind: str, activation: type[nn.Module]) -> Any:
    net: Any = uneven(make_net(kind))
    for block in net.blocks:
        block.mlp.act = activation()
    return net


@pytest.mark.parametrize("kind", ["class_token", "average_pooled"])
@pytest.mark.parametrize("name", ["evidence", "libragrad"])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ELU, nn.Softplus])
def test_an_activation_without_a_surrogate_is_refused(name: str, kind: str, activation: type[nn.Module]) -> None:
    net = with_activation(kind, activation)
    with pytest.raises(
        UnsupportedModelError, match=rf"{name}: .* VisionTransformer miss its logits by \d.*Supported are"
    ):
        litcam.create_explainer(name, net)(make_images(net))


@pytest.mark.parametrize("kind", ["class_token", "average_pooled"])
@pytest.mark.parametrize("method", [Evidence, LibraGrad])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.Mish, nn.Hardswish, timm.layers.GELUTanh])
def test_other_activations_with_a_gate_are_complete(method: Any, kind: str, activation: type[nn.Module]) -> None:
    net = with_activation(kind, activation).double()
    images = make_images(net, 2).double()
    explainer = method(net)
    assert explainer.contributions(explainer.trace(images), TARGETS).error().max() < 1e-10


@pytest.mark.parametrize("method", [Evidence, LibraGrad])
def test_gated_mlps_and_root_mean_square_norms_are_complete(method: Any) -> None:
    options = {**SMALL, "mlp_layer": timm.layers.SwiGLUPacked, "norm_layer": timm.layers.RmsNorm}
    torch.manual_seed(0)
    net = uneven(timm.create_model("vit_tiny_patch16_224", pretrained=False, **options)).eval().double()
    explainer = method(net)
    images = make_images(net, 2).double()
    assert explainer.contributions(explainer.trace(images), TARGETS).error().max() < 1e-10


@pytest.mark.parametrize("name", ["evidence", "libragrad", "legrad", "tokentm", "token_dropping"])
def test_a_head_of_zeros_gives_maps_of_zeros(name: str, net: Any) -> None:
    nn.init.zeros_(net.head.weight)
    if hasattr(net, "head_dist"):
        nn.init.zeros_(net.head_dist.weight)
    heatmaps = litcam.create_explainer(name, net)(make_images(net)).heatmaps
    if name != "tokentm":  # its own identity remains in a pooled model
        assert heatmaps.abs().max() == 0
    assert heatmaps.isfinite().all()


def test_evidence_replays_class_tokens_and_gives_what_differentiation_gives() -> None:
    for kind in NETS:
        net = uneven(make_net(kind)).double()
        explainer = Evidence(net)
        trace = record(explainer.vit, make_images(net, 2).double(), {explainer: explainer.read})
        replayed = explainer._replayed(trace, TARGETS)
        assert (replayed is None) == (kind in POOLED)
        if replayed is not None:
            for fast, slow in zip(replayed, explainer._differentiated(trace, TARGETS), strict=True):
                assert relative_error(fast, slow) < 1e-10


def test_libragrad_explains_a_probability_that_is_nearly_one() -> None:
    net: Any = make_net("class_token")
    with torch.no_grad():
        net.head.weight *= 30
        net.head.bias[2] = 20
    images = make_images(net, 1)
    assert net(images).softmax(1)[0].max() > 1 - 1e-6
    heatmaps = litcam.create_explainer("libragrad", net)(images).heatmaps
    assert heatmaps.abs().max() > 0


# ---------------------------------------------------------------------------------------------------------------------
# Families, options, shared traces
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["tokentm", "token_dropping"])
def test_these_too_explain_every_family_and_every_image_as_if_alone(name: str, family: str) -> None:
    if name == "token_dropping" and family == "vit, 384 pixels":
        pytest.skip("576 forwards of 576 tokens for the plainest of nets")
    net = make_family(family)
    images = images_for(net)
    if name == "tokentm" and "parallel" in family:
        with pytest.raises(UnsupportedModelError, match=r"tokentm needs blocks with an attention and then an MLP"):
            litcam.create_explainer(name, net)
        return
    explainer = litcam.create_explainer(name, net)
    together = explainer(images, TARGETS).heatmaps
    assert together.isfinite().all()
    assert together.amax() > together.amin()
    alone = torch.cat([explainer(images[i : i + 1], TARGETS[i : i + 1]).heatmaps for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("name", ["evidence", "libragrad", "legrad", "legrad:readout=class_token", "tokentm"])
def test_a_forward_that_was_recorded_for_others_is_explained_too(name: str) -> None:
    net = make_net("class_token")
    images, targets = make_images(net), torch.tensor([1, 0, 4])
    known, options = litcam.explainers.parse_explainer(name)
    explainer = litcam.create_explainer(known, net, **options)
    other = litcam.create_explainer("agcam", net)
    trace = record(explainer.vit, images, {explainer: explainer.read, other: other.read})
    shared = explainer.explain(trace.select(torch.tensor([2, 0])), targets[[2, 0]]).heatmaps
    torch.testing.assert_close(shared, explainer(images, targets).heatmaps[[2, 0]], rtol=1e-5, atol=1e-6)


def test_legrad_of_the_class_token_is_replayed_and_gives_what_a_whole_forward_gives() -> None:
    for kind in (kind for kind in NETS if kind not in POOLED):
        net = uneven(make_net(kind)).double()
        explainer, images = LeGrad(net, layers=None, readout="class_token"), make_images(net, 2).double()
        trace = explainer.trace(images)
        assert explainer._replayed(trace) is not None
        with torch.no_grad():
            replayed = explainer.heatmaps(trace, TARGETS)
            whole = explainer.heatmaps(explainer._locally(explainer.vit, images), TARGETS)
        assert relative_error(replayed, whole) < 1e-10


def test_legrad_takes_all_layers_of_a_net_that_has_fewer() -> None:
    net = make_net("class_token")
    images = make_images(net, 1)
    everything, more = (litcam.create_explainer("legrad", net, layers=n)(images).heatmaps for n in (None, 9))
    assert torch.equal(everything, more)


BALANCED: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "generic_attention": (oracles.generic_attention, {}, {}),
    "saw": (oracles.saw, {"scaled": False}, {}),
    "attention_gradcam": (oracles.attention_gradcam, {}, {}),
    "gradcam": (oracles.gradcam, {}, {}),
    "gradcam_plusplus": (oracles.gradcam_plusplus, {}, {}),
    "hirescam": (oracles.hirescam, {}, {}),
    "saliency": (oracles.saliency, {}, {}),
    "agcam": (oracles.agcam, {}, {}),
    "agcam, full": (oracles.agcam, {"gradient": "full"}, {"gradient": "full"}),
}


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("case", BALANCED)
def test_gradient_methods_take_balanced_gradients(case: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, fixed, options = BALANCED[case]
    net = uneven(make_net(kind))
    images, targets = make_images(net, 1), torch.arange(7)[None]
    name = case.split(",")[0]
    plain = litcam.create_explainer(name, net, **options)(images, targets).heatmaps
    balanced = litcam.create_explainer(name, net, balanced=True, **options)(images, targets).heatmaps
    monkeypatch.setattr(oracles, "forward", frontier_oracles.balanced_trace)
    expected = torch.stack([torch.stack([oracle(net, images[0], target, **fixed) for target in range(7)])])
    assert relative_error(balanced, expected) < 1e-5
    assert relative_error(plain, expected) > 1e-3


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("evidence", {"sign": "negative"}, "choose one of signed, positive"),
        ("libragrad", {"form": "gradient"}, "choose one of fullgrad_plus, fullgrad, input_gradient"),
        ("libragrad", {"score": "loss"}, "choose one of probability, logit"),
        ("legrad", {"layers": 0}, "layers is 0; at least 1 is needed"),
        ("legrad", {"readout": "patches"}, "choose one of mean, class_token"),
        ("token_dropping", {"score": "loss"}, "choose one of probability, logit"),
        ("token_dropping", {"batch_size": 0}, "batch_size is 0; at least 1 is needed"),
    ],
)
def test_wrong_options_are_named(class_token_net: nn.Module, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        litcam.create_explainer(name, class_token_net, **options)
