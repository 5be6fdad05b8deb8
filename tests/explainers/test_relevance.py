"""Relevance against its rules one by one, and against an oracle that walks one image through every N×N matrix."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import Block, ParallelScalingBlock, ResPostBlock
from torch import Tensor, nn
from torch.nn import functional as F

import relevance_oracle as oracle
from conftest import SMALL, make_images, make_net, relative_error
from litcam.errors import InputError, UnsupportedModelError
from litcam.explainers.relevance import Relevance, _Forward
from litcam.vit import lrp
from litcam.vit.doubled import DoubleMode
from litcam.vit.recorder import record


def make_vit(name: str = "vit_tiny_patch16_224", **arguments: Any) -> nn.Module:
    """A random net, its weights and biases large enough for the shares to be uneven."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = timm.create_model(name, pretrained=False, **{**SMALL, **arguments})
        for key, parameter in net.named_parameters():
            if parameter.ndim > 1 or "bias" in key:
                nn.init.normal_(parameter, std=0.12)
    return net.eval()


KINDS = ("class_token", "distilled", "registers", "layer_scale", "average_pooled", "non_square")
MODELS: dict[str, Callable[[], nn.Module]] = {
    **{kind: lambda kind=kind: make_net(kind) for kind in KINDS},
    "beit": lambda: make_vit("beit_base_patch16_224"),
    "beit_with_shared_bias": lambda: make_vit(
        "beit_base_patch16_224", global_pool="token", use_rel_pos_bias=False, use_shared_rel_pos_bias=True
    ),
    "clip": lambda: make_vit("vit_base_patch16_clip_224"),
    "deit3": lambda: make_vit("deit3_small_patch16_224", init_values=0.3),
    "dinov2": lambda: make_vit("vit_small_patch14_reg4_dinov2", patch_size=16, init_values=0.3),
    "scaled_norms": lambda: make_vit(scale_attn_norm=True, scale_mlp_norm=True, qk_norm=True),
    "no_biases": lambda: make_vit(qkv_bias=False, proj_bias=False),
}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A small random net of each supported kind in turn."""
    return MODELS[request.param]()


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Largest error as a share of the largest value, of the worst image."""
    assert (expected.abs().amax((-2, -1)) > 0).all(), "the oracle's map is empty: the comparison would prove nothing"
    return float(((actual - expected).abs().amax((-2, -1)) / expected.abs().amax((-2, -1))).max())


def walk_slowly(net: nn.Module, images: Tensor, targets: list[int], start_layer: int = 0) -> Tensor:
    """The oracle's maps [B, gh, gw] of a net and images in double precision."""
    return torch.stack(
        [oracle.relevance(net, image, target, start_layer) for image, target in zip(images, targets, strict=True)]
    )


# ---------------------------------------------------------------------------------------------------------------------
# The rules
# ---------------------------------------------------------------------------------------------------------------------


def double(*shape: int, seed: int) -> Tensor:
    """Random float64 numbers of both signs."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_linear_rule_equals_its_four_products() -> None:
    x, weight, relevance = double(2, 5, 8, seed=0), double(6, 8, seed=1), double(3, 2, 5, 6, seed=2)
    expected = torch.stack([oracle.z_plus(x, weight, one) for one in relevance])
    torch.testing.assert_close(lrp.share_linear(x, weight, x @ weight.T, relevance), expected, rtol=1e-7, atol=1e-9)


def test_the_linear_rule_conserves_relevance_but_of_outputs_without_a_positive_term() -> None:
    x, weight, relevance = double(4, 8, seed=0), double(6, 8, seed=1), double(1, 4, 6, seed=2)
    shares = lrp.share_linear(x, weight, x @ weight.T, relevance)
    torch.testing.assert_close(shares.sum(-1), relevance.sum(-1))

    x, weight = x.abs().float(), weight.abs().float()
    weight[2] *= -1  # all products x·w are negative: Z = 0
    relevance = relevance.float()
    shares = lrp.share_linear(x, weight, x @ weight.T, relevance)
    torch.testing.assert_close(shares.sum(-1), relevance.sum(-1) - relevance[..., 2])
    torch.testing.assert_close(shares[0], oracle.z_plus(x, weight, relevance[0]))


def test_the_linear_rule_by_hand() -> None:
    x, weight = torch.tensor([[2.0, -1.0, 3.0]]), torch.tensor([[1.0, -4.0, -5.0]])
    # The terms are 2, 4 and -15: the two positive ones share, 1 to 2.
    shares = lrp.share_linear(x, weight, x @ weight.T, torch.tensor([[[9.0]]]))
    torch.testing.assert_close(shares, torch.tensor([[[3.0, 6.0, 0.0]]]))


def test_the_product_rule_equals_input_times_gradient_and_gives_half_to_each() -> None:
    left, right, relevance = double(2, 3, 4, 5, seed=0), double(2, 3, 5, 6, seed=1), double(2, 2, 3, 4, 6, seed=2)
    of_left, of_right = lrp.share_product(left, right, left @ right, relevance)
    for position, one in enumerate(relevance):
        expected = oracle.input_times_gradient(torch.matmul, [left, right], one)
        torch.testing.assert_close(of_left[position], expected[0] / 2, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(of_right[position], expected[1] / 2, rtol=1e-6, atol=1e-9)
    per_matrix = relevance.sum((-2, -1)) / 2
    torch.testing.assert_close(of_left.sum((-2, -1)), per_matrix, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(of_right.sum((-2, -1)), per_matrix, rtol=1e-6, atol=1e-6)


def test_the_sum_rule_equals_the_oracle_for_each_image_and_conserves_relevance() -> None:
    a, b, relevance = double(3, 4, 5, seed=0), double(3, 4, 5, seed=1), double(2, 3, 4, 5, seed=2)
    of_a, of_b = lrp.share_sum(a, b, relevance)
    for k in range(2):
        for image in range(3):
            expected = oracle.add_rule(a[image], b[image], relevance[k, image])
            torch.testing.assert_close(of_a[k, image], expected[0], rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(of_b[k, image], expected[1], rtol=1e-6, atol=1e-9)
    total = (of_a + of_b).sum((-2, -1))
    torch.testing.assert_close(total, relevance.sum((-2, -1)), rtol=1e-6, atol=1e-6)


def test_the_sum_rule_loses_no_digits_where_summands_cancel_but_enlarges_the_errors_they_bring() -> None:
    a, b = (double(1, 200, 64, seed=seed).float() for seed in (0, 1))
    relevance = double(1, 1, 200, 64, seed=2).float()
    a[0, 3, 5] = -b[0, 3, 5] + 1e-6  # a + b is small and, of these two numbers, exact
    others = torch.ones(200, 64, dtype=torch.bool)
    others[3, 5] = False  # those that its share scales

    exact = lrp.share_sum(a.double(), b.double(), relevance.double())
    for part, expected in zip(lrp.share_sum(a, b, relevance), exact, strict=True):
        assert relative_error(part[..., others], expected[..., others]) < 1e-5
        assert relative_error(part, expected) < 1e-5

    moved = a.double()
    moved[0, 3, 5] += 1e-7  # about what a forward in single precision is off by
    for part, expected in zip(lrp.share_sum(moved, b.double(), relevance.double()), exact, strict=True):
        assert relative_error(part[..., others], expected[..., others]) > 0.05


def test_the_sum_rule_by_hand() -> None:
    a, b = torch.tensor([[3.0, -1.0]]), torch.tensor([[1.0, 2.0]])
    # Contributions (6, -4) and (2, 8) total 2 and 10: shares 1 to 5 of 12 are what they are already.
    of_a, of_b = lrp.share_sum(a, b, torch.tensor([[[8.0, 4.0]]]))
    torch.testing.assert_close(of_a, torch.tensor([[[6.0, -4.0]]]))
    torch.testing.assert_close(of_b, torch.tensor([[[2.0, 8.0]]]))
    # Contributions (6, -8) and (2, 16) total -2 and 18: as |-2| : |18| of 16 they become 1.6 and 14.4.
    of_a, of_b = lrp.share_sum(a, b, torch.tensor([[[8.0, 8.0]]]))
    torch.testing.assert_close(of_a, torch.tensor([[[6.0, -8.0]]]) * -0.8)
    torch.testing.assert_close(of_b, torch.tensor([[[2.0, 16.0]]]) * 0.8)


def test_the_mean_rule_by_hand_conserves_relevance() -> None:
    tokens = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])  # means 2 and 0.5
    shares = lrp.share_mean(tokens, torch.tensor([0.5, 0.5]), torch.tensor([[[4.0, 1.0]]]))
    torch.testing.assert_close(shares, torch.tensor([[[[1.0, 2.0], [3.0, -1.0]]]]))
    torch.testing.assert_close(shares.sum(), torch.tensor(5.0))
    weighted = lrp.share_mean(tokens, torch.tensor([0.25, 0.75]), torch.tensor([[[5.0, -1.0]]]))  # means 2.5 and -0.25
    torch.testing.assert_close(weighted, torch.tensor([[[[0.5, 2.0], [4.5, -3.0]]]]))
    alone = lrp.share_mean(tokens, torch.tensor([0.0, 1.0]), torch.tensor([[[5.0, -1.0]]]))
    torch.testing.assert_close(alone, torch.tensor([[[[0.0, 0.0], [5.0, -1.0]]]]))


def test_nothing_is_divided_by_zero() -> None:
    zero = torch.zeros(1, 2)
    quotients = lrp.safe_divide(torch.full((3,), 6.0), torch.tensor([0.0, -lrp.EPSILON, 2.0]))
    assert torch.equal(quotients, torch.tensor([0.0, 0.0, 3.0]))
    for part in lrp.share_sum(zero, zero, torch.ones(1, 1, 2)):
        assert torch.equal(part, zero[None])
    assert torch.equal(lrp.share_linear(zero, torch.ones(3, 2), torch.zeros(1, 3), torch.ones(1, 1, 3)), zero[None])
    halves = torch.tensor([0.5, 0.5])
    assert not lrp.share_mean(torch.zeros(1, 2, 2), halves, torch.ones(1, 1, 2)).any()
    left, right = lrp.share_product(zero, torch.zeros(2, 2), zero, torch.ones(1, 1, 2))
    assert not left.any()
    assert not right.any()


# ---------------------------------------------------------------------------------------------------------------------
# The method
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [nullcontext, torch.no_grad, torch.inference_mode])
def test_a_batch_equals_the_oracle_image_by_image(model: nn.Module, context: type) -> None:
    model.double()
    images, targets = make_images(model).double(), [0, 3, 6]
    with context():
        explanation = Relevance(model)(images, torch.tensor(targets))
    assert explanation.heatmaps.dtype == torch.float32
    assert deviation(explanation.heatmaps, walk_slowly(model, images, targets)) < 2e-6
    torch.testing.assert_close(explanation.logits, model(images))


def test_single_precision_correlates_with_the_oracle(model: nn.Module) -> None:
    images, targets = make_images(model), [1, 1, 5]
    heatmaps = Relevance(model)(images, torch.tensor(targets)).heatmaps
    expected = walk_slowly(model.double(), images.double(), targets)
    for actual, exact in zip(heatmaps.double().flatten(1), expected.flatten(1), strict=True):
        assert torch.corrcoef(torch.stack([actual, exact]))[0, 1] > 0.9999


def test_double_equals_the_oracle_for_every_kind_of_model(model: nn.Module) -> None:
    images, targets = make_images(model), [1, 1, 5]
    heatmaps = Relevance(model, double=True)(images, torch.tensor(targets)).heatmaps
    expected = walk_slowly(model.double(), images.double(), targets)
    assert deviation(heatmaps, expected) < 5e-4
    exact = Relevance(model, double=True)(images.double(), torch.tensor(targets)).heatmaps
    assert torch.equal(exact, Relevance(model)(images.double(), torch.tensor(targets)).heatmaps)


def test_double_refuses_a_net_whose_next_forward_is_another_one() -> None:
    net, forwards = make_net("class_token"), iter(range(1, 99))
    net.patch_embed.register_forward_hook(lambda module, arguments, output: output * next(forwards))
    with pytest.raises(UnsupportedModelError, match="logits of VisionTransformer that are others when it runs again"):
        Relevance(net, double=True)(make_images(net))


def test_double_mode_casts_what_functions_are_given_and_nothing_else() -> None:
    weight, counts, total = torch.ones(2, 3), torch.arange(3), torch.zeros(2)
    with DoubleMode():
        product = F.linear(torch.ones(1, 3), weight)
        joined = torch.cat([weight, weight.float(), weight.to(torch.float32), weight.to(weight.dtype)])
        total[0] = 1
        total.add_(1)
        summed = counts.sum()
    assert product.dtype == joined.dtype == torch.float64
    assert weight.dtype == total.dtype == torch.float32
    assert total.tolist() == [2, 1]
    assert summed.dtype == torch.int64
    thirds = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    with DoubleMode():
        assert torch.equal(thirds.float(), thirds)  # no digit is lost on the way


@pytest.mark.parametrize("start_layer", [1, 2, -1])
def test_the_product_begins_at_the_start_layer(start_layer: int) -> None:
    net = make_net("class_token").double()
    images, targets = make_images(net).double(), [4, 2, 0]
    heatmaps = Relevance(net, start_layer=start_layer)(images, torch.tensor(targets)).heatmaps
    expected = walk_slowly(net, images, targets, start_layer)
    assert deviation(heatmaps, expected) < 2e-6
    assert deviation(heatmaps, walk_slowly(net, images, targets)) > 1e-4  # layer 0 counts


@pytest.mark.parametrize("kind", ["class_token", "distilled", "average_pooled"])
def test_several_classes_per_image_equal_one_class_at_a_time(kind: str) -> None:
    net = make_net(kind).double()
    images, targets = make_images(net).double(), torch.tensor([[0, 1], [2, 3], [6, 0]])
    together = Relevance(net)(images, targets).heatmaps
    alone = torch.stack([Relevance(net)(images, targets[:, position]).heatmaps for position in range(2)], dim=1)
    assert together.shape == (3, 2, 4, 4)
    assert deviation(together, alone) < 1e-6
    assert deviation(together[:, 0], together[:, 1]) > 1e-2  # the map depends on the class


def test_chunks_of_images_do_not_change_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net("distilled").double()
    images, targets = make_images(net, 5).double(), torch.zeros(5, 2, dtype=torch.int64)
    expected = Relevance(net)(images, targets).heatmaps
    for images_at_once in (1, 2):
        elements = images_at_once * 2 * 3 * 18 * 18  # K·H·N·N
        monkeypatch.setattr("litcam.explainers.relevance._ELEMENTS_IN_CACHE", elements)
        assert deviation(Relevance(net)(images, targets).heatmaps, expected) < 1e-6


def test_relevance_is_conserved_from_the_logit_to_the_walk_through_a_block() -> None:
    net = make_net("class_token").double()
    images = make_images(net).double()
    explainer = Relevance(net)
    forward = explainer.trace(images).graph
    assert isinstance(forward, _Forward)
    with torch.no_grad():
        head = forward.heads[0].share(torch.eye(7, dtype=torch.float64)[None, [2, 3, 4]])
        hidden = forward.blocks[-1].fc2.share(head[:, :, None], slice(0, 1))
    torch.testing.assert_close(head.sum(-1), torch.ones(1, 3, dtype=torch.float64))
    torch.testing.assert_close(hidden.sum((-2, -1)), torch.ones(1, 3, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["class_token", "distilled", "average_pooled"])
def test_in_double_precision_a_net_has_the_map_of_its_double(kind: str) -> None:
    net = make_net(kind)
    images, targets = make_images(net), torch.tensor([[0, 1], [2, 3], [4, 5]])
    expected = Relevance(copy.deepcopy(net).double())(images.double(), targets).heatmaps
    explanation = Relevance(net, double=True)(images, targets)
    assert explanation.logits.dtype == next(net.parameters()).dtype == torch.float32
    assert deviation(explanation.heatmaps, expected) < 5e-4
    with torch.inference_mode():
        trace = record(Relevance(net).vit, images, {})
        assert deviation(Relevance(net, double=True).explain(trace, targets).heatmaps, expected) < 5e-4


@pytest.mark.parametrize("kind", ["class_token", "distilled", "average_pooled"])
def test_double_restores_the_digits_that_a_token_near_zero_costs(kind: str) -> None:
    net = make_net(kind)
    images, targets = make_images(net, 1), [1]
    bring_a_token_near_zero(net, images)
    single, double = (Relevance(net, double=double)(images, torch.tensor(targets)).heatmaps for double in (False, True))
    expected = walk_slowly(net.double(), images.double(), targets)
    assert deviation(single, expected) > 2e-3
    assert deviation(double, expected) < 1e-3


def bring_a_token_near_zero(net: nn.Module, images: Tensor) -> None:
    """Shift the bias of every attention so that one value of one token is rounding alone after it."""
    seen: list[Tensor] = []
    for block in net.double().blocks:
        hook = block.norm2.register_forward_pre_hook(lambda norm, arguments: seen.append(arguments[0].detach()))
        net(images.double())
        hook.remove()
        bias = block.attn.proj.bias.data
        bias[3] -= seen[-1][0, -1, 3]
        bias.copy_(bias.float())
    net.float()


def test_one_forward_is_enough() -> None:
    net = make_net("class_token")
    images = make_images(net)
    explainer, forwards = Relevance(net), []
    trace = record(explainer.vit, images, {})
    net.blocks[1].attn.register_forward_hook(lambda *_: forwards.append(1))
    explainer.heatmaps(trace, torch.tensor([[0], [1], [2]]))
    assert len(forwards) == 1


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_weights_give_the_same_map_and_no_gradient_is_left(frozen: bool) -> None:
    net = make_net("class_token").requires_grad_(not frozen)
    images, targets = make_images(net), torch.tensor([0, 1, 2])
    heatmaps = Relevance(net)(images, targets).heatmaps
    torch.testing.assert_close(heatmaps, Relevance(make_net("class_token"))(images, targets).heatmaps)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert torch._C._len_torch_function_stack() == 0


def test_autocast_does_not_reach_the_walk() -> None:
    net = make_net("class_token")
    images, targets = make_images(net), torch.tensor([0, 1, 2])
    expected = Relevance(net)(images, targets).heatmaps
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Relevance(net)(images, targets).heatmaps, expected)


def test_a_bias_that_beit_adds_to_the_output_afterwards_takes_no_relevance() -> None:
    net = make_vit("beit_base_patch16_224").double()
    images, targets = make_images(net).double(), torch.tensor([0, 1, 2])
    expected = Relevance(net)(images, targets).heatmaps
    for block in net.blocks:
        block.attn.qkv_bias_separate = True
    assert deviation(Relevance(net.requires_grad_(False))(images, targets).heatmaps, expected) < 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Modules around a net, and refusals
# ---------------------------------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A user's module that holds a net, and does something to its output."""

    def __init__(self, net: nn.Module, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.backbone = net
        self.after = after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.backbone(images))


def test_a_linear_head_of_the_users_own_equals_the_same_head_inside_the_net() -> None:
    net, images = make_net("class_token").double(), make_images(make_net("class_token")).double()
    targets = torch.tensor([0, 3, 6])
    expected = Relevance(net)(images, targets).heatmaps
    assert torch.equal(Relevance(Wrapped(net, nn.Identity()).eval())(images, targets).heatmaps, expected)

    head, net.head = net.head, nn.Identity()
    heatmaps = Relevance(Wrapped(net, head).eval())(images, targets).heatmaps
    assert deviation(heatmaps, expected) < 1e-6


@pytest.mark.parametrize(
    ("after", "keep_head"),
    [
        (nn.Sequential(nn.Linear(48, 9), nn.ReLU(), nn.Linear(9, 5)), False),
        (nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 5)), False),
        (nn.Softmax(-1), True),
        (nn.Linear(7, 5), True),
    ],
)
def test_other_ways_from_the_pooled_tokens_to_the_logits_are_refused(after: nn.Module, keep_head: bool) -> None:
    net = make_net("class_token")
    if not keep_head:
        net.reset_classifier(0)
    with pytest.raises(UnsupportedModelError, match="from the pooled tokens to the logits of Wrapped"):
        Relevance(Wrapped(net, after).eval())(make_images(net))


class Scaled(nn.Linear):
    """A Linear layer that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Interrupted(Block):
    """A block whose forward is another one."""

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        return super().forward(x, **arguments).relu()


def tied() -> nn.Module:
    net = make_vit()
    net.blocks[1].mlp.fc1.weight = net.blocks[0].mlp.fc1.weight
    return net


def adapted() -> nn.Module:
    net = make_vit()
    net.blocks[2].attn.proj = Scaled(48, 48)
    return net


def interposed() -> nn.Module:
    net = make_vit()
    net.blocks[1].register_forward_pre_hook(lambda block, inputs: (inputs[0] + 1,))
    return net


def gated() -> nn.Module:
    net = make_vit()
    net.blocks[0].attn.gate = nn.Linear(48, 48)
    return net


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: make_vit(block_fn=ParallelScalingBlock), "ParallelScalingBlock as block 0"),
        (lambda: make_vit(block_fn=ResPostBlock), "ResPostBlock as block 0"),
        (lambda: make_vit(block_fn=Interrupted), "Interrupted as block 0"),
        (lambda: make_vit("eva02_tiny_patch14_224", patch_size=16), "EvaBlock as block 0"),
        (lambda: make_vit(mlp_layer=SwiGLUPacked), "in block 0"),
        (gated, "the gate of the attention in block 0"),
        (adapted, "Scaled as proj of block 2"),
        (tied, r"a weight that a forward uses 2 times \(fc1 of block 0\)"),
        (interposed, r"what VisionTransformer does between the blocks 0 and 1"),
        (lambda: make_vit("vit_base_patch16_siglip_224"), r"to the head of VisionTransformer \(global_pool='map'\)"),
    ],
)
def test_parts_without_a_rule_are_refused_by_name(make: Callable[[], nn.Module], part: str) -> None:
    net = make()
    with pytest.raises(UnsupportedModelError, match=rf"relevance has no rule for .*{part}.*: it supports timm's vit"):
        Relevance(net)(make_images(net))
    assert torch._C._len_torch_function_stack() == 0


def test_a_net_that_is_called_twice_is_refused() -> None:
    net = make_net("class_token")

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = net

        def forward(self, images: Tensor) -> Tensor:
            return self.backbone(images) + self.backbone(-images)

    with pytest.raises(UnsupportedModelError, match="Twice runs its VisionTransformer 2 times"):
        Relevance(Twice().eval())(make_images(net))


@pytest.mark.parametrize("start_layer", [3, -4])
def test_a_layer_that_the_net_does_not_have_is_refused(start_layer: int) -> None:
    with pytest.raises(InputError, match="start_layer is"):
        Relevance(make_net("class_token"), start_layer=start_layer)
