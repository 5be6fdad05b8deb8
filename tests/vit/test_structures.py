"""Every structure with every method: the map is that of the equal net, or the method refuses in a sentence.

Never another exception, and never a finite map that is wrong.
"""

import copy
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import pytest
import torch
from blocks import BLOCKS
from expectations import ORACLES, by_reference, create, doubled, expected, explain
from roots import ROOTS
from structures import (
    ALL,
    CONTROLS,
    FEW,
    METHODS,
    PIXELS,
    READOUTS,
    RULES,
    Structure,
    average_net,
    class_row,
    patch_row,
    randomise,
    reference,
    token_net,
    vit,
)
from torch import Tensor, nn

from conftest import relative_error
from litcam.errors import LitcamError

STRUCTURES: dict[str, Structure] = {**READOUTS, **BLOCKS, **ROOTS}
TARGETS = torch.tensor([[0, 3], [6, 2]])
FORMS = ["several", "one", "predicted"]  # [B, K], [B], None
CASES = [
    pytest.param(name, method, (i + j) % 3, id=f"{name}-{method}")
    for i, (name, structure) in enumerate(STRUCTURES.items())
    for j, method in enumerate(METHODS)
    if method in structure.methods
]


@cache
def made(name: str) -> tuple[nn.Module, Tensor]:
    """A model and images for it."""
    root = STRUCTURES[name].make().eval()
    return root, images_of(*STRUCTURES[name].images)


def images_of(channels: int, height: int, width: int) -> Tensor:
    """Two random images."""
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def predicted(root: nn.Module, images: Tensor) -> Tensor:
    """The model's own classes."""
    with torch.no_grad():
        return root(images).argmax(1)


def deviation(actual: Tensor, right: Tensor) -> float:
    """The largest, as a share of the map's spread; a map that is nearly flat is measured by the greatest value."""
    actual, right = actual.flatten(0, 1).flatten(1), right.flatten(0, 1).flatten(1)
    spread = right.amax(1) - right.amin(1)
    size = torch.maximum(spread, 1e-3 * right.abs().amax()).clamp(min=1e-12)
    return float(((actual - right).abs().amax(1) / size).amax())


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_net_that_tells_the_right_map_gives_the_same_logits(name: str) -> None:
    structure, (root, images) = STRUCTURES[name], made(name)
    with torch.no_grad():
        if structure.equal is not None:
            torch.testing.assert_close(root(images), structure.equal()(structure.to_net(images)), rtol=1e-4, atol=1e-5)
        if structure.reference is not None:
            logits = doubled(structure.reference)(images.double()).float()
            torch.testing.assert_close(root(images), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "method", "form"), CASES)
def test_the_map_is_right_or_refused(
    name: str, method: str, form: int, record_property: Callable[[str, object], None]
) -> None:
    structure, (root, images) = STRUCTURES[name], made(name)
    asked = {"several": TARGETS, "one": TARGETS[:, 0], "predicted": None}[FORMS[form]]
    targets = predicted(root, images)[:, None] if asked is None else asked.reshape(2, -1)
    untold = structure.free | structure.refused
    right = None if method in untold else expected(structure, root, method, images, targets)
    record_property("outcome", check(structure, root, method, images, asked, targets, right))


def check(
    structure: Structure,
    root: nn.Module,
    method: str,
    images: Tensor,
    asked: Tensor | None,
    targets: Tensor,
    right: Tensor | None,
) -> str:
    """One cell of the matrix: right, free, or the sentence of the refusal."""
    try:
        explanation = explain(method, root, images, asked)
    except LitcamError as error:
        if method in structure.must and right is not None:
            pytest.fail(f"refused: {error}")
        return str(error)
    assert method not in structure.refused, "not refused"
    assert torch.equal(explanation.targets.reshape(2, -1), targets)
    with torch.no_grad():
        torch.testing.assert_close(explanation.logits, root(images), rtol=1e-4, atol=1e-5)
    actual = explanation.heatmaps.reshape(2, -1, *explanation.heatmaps.shape[-2:])
    assert actual.isfinite().all()
    if method in structure.free:
        return "free"
    assert right is not None, "a map where there is none"
    assert actual.shape == right.shape
    # relevance divides by sums that cancel: in double precision it equals its oracle, in single to about two digits
    assert deviation(actual, right) < (1e-2 if method in RULES else structure.tolerance)
    return "right"


@pytest.mark.parametrize(
    "name",
    # Beside convolutions each method finds in its own way that the tokens are not all.
    [name for name, structure in STRUCTURES.items() if structure.refused and name != "beside convolutions"],
)
def test_all_methods_that_refuse_do_it_in_the_same_sentence(name: str) -> None:
    root, images = made(name)
    sentences = set()
    for method in sorted(STRUCTURES[name].refused & STRUCTURES[name].methods):
        with pytest.raises(LitcamError) as refusal:
            explain(method, root, images, TARGETS)
        sentences.add(str(refusal.value).removeprefix(f"{METHODS[method][0]}: "))
    assert len(sentences) == 1


# ---------------------------------------------------------------------------------------------------------------------
# 17: a net in whole numbers
# ---------------------------------------------------------------------------------------------------------------------

NEED_GRADIENTS = sorted(ALL - CONTROLS - RULES - {"cam", "rise", "score_cam", "token_dropping"} - {
    method for method in ALL if method.startswith(("raw_attention", "rollout", "reciprocam", "attention_flow"))
})  # fmt: skip


@cache
def quantised() -> nn.Module:
    """Dynamic quantisation of every Linear layer."""
    engines = [x for x in torch.backends.quantized.supported_engines if x in ("x86", "fbgemm", "qnnpack")]
    if not engines:
        pytest.skip("no backend for quantised layers")
    torch.backends.quantized.engine = engines[0]
    quantize = torch.ao.quantization.quantize_dynamic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return quantize(copy.deepcopy(token_net()), {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("method", ["raw_attention", "raw_attention:last", "raw_attention:sigmoid", "rollout"])
def test_attention_of_a_quantised_net_is_that_of_its_own_layers(method: str) -> None:
    net, image = quantised(), images_of(3, 64, 64)[0]
    actual = explain(method, net, image[None], None).heatmaps[0]
    assert relative_error(actual, ORACLES[method](net, image, 0)) < 1e-2


def test_rise_of_a_quantised_net_is_near_that_of_the_net() -> None:
    images = images_of(3, 64, 64)
    actual, right = (explain("rise", net, images, TARGETS).heatmaps for net in (quantised(), token_net()))
    assert relative_error(actual, right) < 0.1


@pytest.mark.parametrize("method", [*NEED_GRADIENTS, "relevance"])
def test_what_needs_gradients_refuses_a_quantised_net(method: str) -> None:
    with pytest.raises(LitcamError):
        explain(method, quantised(), images_of(3, 64, 64), TARGETS)


@pytest.mark.parametrize("method", ["reciprocam", "score_cam", "token_dropping", "attention_flow"])
def test_what_needs_no_gradients_explains_a_quantised_net_or_refuses(method: str) -> None:
    images = images_of(3, 64, 64)
    right = explain(method, token_net(), images, TARGETS).heatmaps
    with suppress(LitcamError):
        actual = explain(method, quantised(), images, TARGETS).heatmaps
        assert torch.corrcoef(torch.stack([actual.flatten(), right.flatten()]))[0, 1] > 0.98


# ---------------------------------------------------------------------------------------------------------------------
# 19: a net that changes between two calls of one explainer
# ---------------------------------------------------------------------------------------------------------------------


def to_average(net: Any) -> None:
    """The head reads the patches from now on."""
    net.global_pool = "avg"


def to_other_head(net: Any) -> None:
    """Other classes."""
    net.head = nn.Linear(48, 4)
    randomise(net.head, seed=11)


def to_larger_images(net: Any) -> None:
    """Another grid."""
    net.set_input_size(img_size=(64, 96))


def to_other_weights(net: Any) -> None:
    """The structure stays."""
    randomise(net, seed=12)


def to_fewer_blocks(net: Any) -> None:
    """The last block goes."""
    net.blocks = net.blocks[:2]


def to_class_token_and_mean(net: Any) -> None:
    """A method of the object is replaced."""
    net.pool = lambda x, pool_type=None: (x[:, 0] + x[:, 1:].mean(1)) / 2


CHANGES = {
    "average pooling": (to_average, (64, 64)),
    "another head": (to_other_head, (64, 64)),
    "larger images": (to_larger_images, (64, 96)),
    "other weights": (to_other_weights, (64, 64)),
    "fewer blocks": (to_fewer_blocks, (64, 64)),
    "half the mean": (to_class_token_and_mean, (64, 64)),
}


SEEN = sorted(FEW - {"cam", "rise"})


@pytest.mark.parametrize(
    ("change", "method"),
    [pytest.param(change, method, id=f"{change}-{method}") for change in CHANGES for method in SEEN],
)
def test_a_net_that_changed_since_the_last_call_is_explained_as_it_is_now(change: str, method: str) -> None:
    net, targets = copy.deepcopy(token_net()), TARGETS % 4
    explainer = create(method, net)
    explainer(images_of(3, 64, 64), targets)
    apply, size = CHANGES[change]
    apply(net)
    images = images_of(3, *size)
    try:  # what is remembered of the net must not tell what is right: the stock net of the new structure does
        right = create(method, average_net() if change == "average pooling" else copy.deepcopy(net))(
            images, targets
        ).heatmaps
    except LitcamError:
        with pytest.raises(LitcamError):
            explainer(images, targets)
        return
    if change == "half the mean":
        half = reference(token_net(), lambda n: (class_row(n) + patch_row(n)) / 2)
        right = by_reference(lambda: half, method, images, targets) if method not in PIXELS else right
    actual = explainer(images, targets).heatmaps
    assert right is not None
    assert actual.shape == right.shape
    assert deviation(actual, right) < 2e-3


@pytest.mark.parametrize("method", SEEN)
def test_images_of_another_size_are_explained_as_by_a_new_explainer(method: str) -> None:
    net = vit(dynamic_img_size=True)
    explainer = create(method, net)
    for size in [(64, 64), (64, 96), (96, 64), (64, 64)]:
        images = images_of(3, *size)
        right = create(method, copy.deepcopy(net))(images, TARGETS).heatmaps
        assert deviation(explainer(images, TARGETS).heatmaps, right) < 2e-3
