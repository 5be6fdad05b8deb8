"""The sanity check by randomisation: what is drawn anew when, and similarities against oracles of plain loops."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import protocol_oracles as oracle
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionVisionTransformer

import litcam
from conftest import make_images, make_net, relative_error
from litcam.errors import InputError, UnsupportedModelError
from litcam.heatmaps import scale
from litcam.metrics import randomization_similarity
from litcam.metrics.functional.correlation import pearson, spearman
from litcam.metrics.randomization import randomization_stages, randomize
from litcam.vit.model import find_vit

Explain = Callable[[Tensor, Tensor], Tensor]
SIZE = (16, 18)  # of the maps
STAGES = ("head", "block 2", "block 1", "block 0", "patch embedding")
TARGETS = torch.tensor([0, 3, 6])


class Recorder:
    """Makes explainers, and keeps the nets and the maps of every stage: those of the trained net first."""

    def __init__(self, name: str = "agcam") -> None:
        self.name = name
        self.nets: list[nn.Module] = []
        self.maps: list[Tensor] = []

    def __call__(self, net: nn.Module) -> Explain:
        self.nets.append(deepcopy(net))
        self.maps.append(torch.empty(0, *SIZE))
        explainer = litcam.create_explainer(self.name, net)

        def explain(images: Tensor, targets: Tensor) -> Tensor:
            maps = explainer(images, targets).upsample(SIZE)
            self.maps[-1] = torch.cat([self.maps[-1], maps])
            return maps

        return explain


def test_both_similarities_are_the_means_of_the_oracle_at_every_stage(class_token_net: nn.Module) -> None:
    recorder = Recorder()
    result = randomization_similarity(recorder, class_token_net, make_images(class_token_net), TARGETS)
    assert result.stages == STAGES
    trained, *others = recorder.maps
    for stage, maps in enumerate(others):
        pairs = list(zip(trained, maps, strict=True))
        ranked = [oracle.rank_correlation(a.flatten().tolist(), b.flatten().tolist()) for a, b in pairs]
        assert result.spearman[stage].item() == pytest.approx(sum(ranked) / 3, abs=1e-6)
        assert result.ssim[stage].item() == pytest.approx(sum(oracle.ssim(a, b) for a, b in pairs) / 3, abs=1e-6)
    assert result.num_images.tolist() == [3] * len(STAGES)
    assert result.num_degenerate.tolist() == [0] * len(STAGES)
    assert result.spearman[-1] < 0.9, "AGCAM looks at the model"
    for name in ("spearman", "ssim"):
        low, value, high = (getattr(result, name + end) for end in ("_low", "", "_high"))
        assert (low < value).all()
        assert (value < high).all()


def test_the_cascade_goes_from_the_head_down_and_keeps_what_it_has_drawn(class_token_net: nn.Module) -> None:
    recorder = Recorder()
    randomization_similarity(recorder, class_token_net, make_images(class_token_net), TARGETS)
    trained, *nets = recorder.nets
    stages = randomization_stages(find_vit(trained))
    names = {parameter: name for name, parameter in trained.named_parameters()}
    before = trained.state_dict()
    for stage, net in zip(stages, nets, strict=True):
        after = net.state_dict()
        changed = {name for name in names.values() if not torch.equal(after[name], before[name])}
        uneven = {names[parameter] for parameter in stages[stage] if parameter.std(correction=0) > 0}
        assert changed == uneven
        before = after


def test_a_map_that_does_not_see_the_model_stays_the_same(class_token_net: nn.Module) -> None:
    result = randomization_similarity(Recorder("center"), class_token_net, make_images(class_token_net), TARGETS)
    torch.testing.assert_close(result.spearman, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(result.ssim, torch.ones(5, dtype=torch.float64))


def test_a_map_of_one_weight_stays_the_same_until_its_stage(class_token_net: nn.Module) -> None:
    def of_block_1(net: Any) -> Explain:
        return lambda images, targets: net.blocks[1].attn.qkv.weight.view(3, 48, 48)

    result = randomization_similarity(of_block_1, class_token_net, make_images(class_token_net), TARGETS)
    assert result.ssim[:2].tolist() == pytest.approx([1, 1])
    assert result.spearman[:2].tolist() == pytest.approx([1, 1])
    assert result.ssim[2:].max() < 0.3
    assert result.spearman[2:].abs().max() < 0.1
    assert len(set(result.spearman[2:].tolist())) == 1, "drawn once, it stays"


def test_neither_net_nor_generator_is_touched_and_the_seed_decides(class_token_net: nn.Module) -> None:
    class_token_net.train()
    class_token_net.blocks[0].mlp.drop1.p = 0.5  # type: ignore[union-attr,index]
    state, images = deepcopy(class_token_net.state_dict()), make_images(class_token_net)
    generator = torch.random.get_rng_state()
    recorder = Recorder()
    first, second, other = (
        randomization_similarity(recorder, class_token_net, images, TARGETS, seed=seed) for seed in (1, 1, 2)
    )
    assert not any(module.training for net in recorder.nets for module in net.modules()), "it explains in evaluation"
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(module.training for module in class_token_net.modules())
    for name, value in class_token_net.state_dict().items():
        assert torch.equal(value, state[name])
    assert torch.equal(first.spearman, second.spearman)
    assert torch.equal(first.ssim, second.ssim)
    assert not torch.isclose(first.spearman, other.spearman).any()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_size_of_its_batches_changes_no_number(class_token_net: nn.Module, batch_size: int) -> None:
    arguments = class_token_net, make_images(class_token_net), TARGETS
    expected = randomization_similarity(Recorder(), *arguments)
    result = randomization_similarity(Recorder(), *arguments, batch_size=batch_size)
    torch.testing.assert_close(result.spearman, expected.spearman, rtol=0, atol=1e-4)  # ranks of rounded values
    torch.testing.assert_close(result.ssim, expected.ssim, rtol=0, atol=1e-5)


def test_degenerate_maps_are_counted_at_their_stage_and_in_no_mean(class_token_net: nn.Module) -> None:
    recorder = Recorder()

    def make_explainer(net: nn.Module) -> Explain:
        explain = recorder(net)

        def spoilt(images: Tensor, targets: Tensor) -> Tensor:
            maps = explain(images, targets).clone()
            stage = len(recorder.maps)
            if stage == 1:
                maps[0] = 0.5  # of the trained net: out of every stage
            if stage == 3:
                maps[1, 0, 0] = float("nan")  # after block 2
            return maps if stage < 6 else torch.zeros_like(maps)

        return spoilt

    result = randomization_similarity(make_explainer, class_token_net, make_images(class_token_net), TARGETS)
    assert result.num_images.tolist() == [2, 1, 2, 2, 0]
    assert result.num_degenerate.tolist() == [1, 2, 1, 1, 3]
    assert result.ssim[4].isnan()
    assert result.spearman[4].isnan()
    pairs = [[maps[i].flatten().tolist() for maps in (recorder.maps[0], recorder.maps[2])] for i in (2,)]
    assert result.spearman[1].item() == pytest.approx(oracle.rank_correlation(*pairs[0]), abs=1e-6)


def torchvision_net() -> nn.Module:
    return TorchvisionVisionTransformer(
        image_size=32, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    )


def transformers_net() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=32, patch_size=16, num_labels=5))


@pytest.mark.parametrize(
    ("build", "head", "embedding"),
    [
        (lambda: make_net("class_token"), ("norm", "head"), ("patch_embed", "pos_embed", "cls_token")),
        (lambda: make_net("distilled"), ("norm", "head"), ("patch_embed", "pos_embed", "cls_token", "dist_token")),
        (lambda: make_net("registers"), ("norm", "head"), ("patch_embed", "pos_embed", "cls_token", "reg_token")),
        (lambda: make_net("average_pooled"), ("fc_norm", "head"), ("patch_embed", "pos_embed", "cls_token")),
        (torchvision_net, ("encoder.ln", "heads"), ("conv_proj", "class_token", "encoder.pos_embedding")),
        (transformers_net, ("vit.layernorm", "classifier"), ("vit.embeddings",)),
    ],
)
def test_every_parameter_of_every_kind_of_net_is_in_one_stage(
    build: Callable[[], nn.Module], head: tuple[str, ...], embedding: tuple[str, ...]
) -> None:
    vit = find_vit(build())
    stages = randomization_stages(vit)
    names = {parameter: name for name, parameter in vit.root.named_parameters()}
    assert list(stages) == ["head", *(f"block {i}" for i in reversed(range(len(vit.blocks)))), "patch embedding"]
    assert sorted(names[parameter] for stage in stages.values() for parameter in stage) == sorted(names.values())
    for stage, beginnings in (("head", head), ("patch embedding", embedding)):
        found = [names[parameter] for parameter in stages[stage]]
        assert all(name.startswith(beginnings) for name in found)
        assert all(any(name.startswith(beginning) for name in found) for beginning in beginnings)


def test_parameters_keep_their_mean_and_deviation_and_lose_their_values() -> None:
    weight = nn.Parameter(torch.linspace(-1, 3, 20_000).view(100, 200).half())
    constant = nn.Parameter(torch.full((7,), 0.5))
    randomize([weight, constant], torch.Generator().manual_seed(0))
    assert weight.dtype == torch.float16
    assert weight.float().mean().item() == pytest.approx(1, abs=0.05)
    assert weight.float().std().item() == pytest.approx(4 / 12**0.5, rel=0.02)
    assert abs(pearson(weight[None], torch.linspace(-1, 3, 20_000).view(1, 100, 200)).item()) < 0.05
    assert constant.tolist() == [0.5] * 7


def test_rank_correlation_equals_oracle_and_scipy_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(9, (4, 6, 7), generator=generator).float() for _ in range(2))
    first[0] = second[0] ** 3  # monotonous: exactly 1
    result = spearman(first, second)
    for value, a, b in zip(result.tolist(), first.flatten(1).tolist(), second.flatten(1).tolist(), strict=True):
        assert value == pytest.approx(oracle.rank_correlation(a, b), abs=1e-12)
        assert value == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert result[0].item() == pytest.approx(1)
    assert abs(result[1].item()) < 0.5
    maps = torch.rand(2000, 6, 7, generator=generator)
    assert pearson(maps, maps.double() / 3).max() == 1, "rounding leads to nothing above"


def test_ssim_compares_maps_that_are_each_scaled(class_token_net: nn.Module) -> None:
    """Maps far from [0, 1] give what their scaled ones give."""
    recorder = Recorder("raw_attention")

    def far_away(net: nn.Module) -> Explain:
        explain = recorder(net)
        return lambda images, targets: 50 - 20 * explain(images, targets)

    result = randomization_similarity(far_away, class_token_net, make_images(class_token_net), TARGETS)
    trained, *others = (scale(1 - maps) for maps in recorder.maps)
    expected = [sum(oracle.ssim(a, b) for a, b in zip(trained, maps, strict=True)) / 3 for maps in others]
    assert relative_error(result.ssim, torch.tensor(expected, dtype=torch.float64)) < 1e-4


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.rand(3, 4, 4), r"gives \[3, 4, 4\] for 3 images; maps \[3, h, w\] of at least 11 by 11 pixels"),
        (torch.rand(3, 1, 16, 16), r"gives \[3, 1, 16, 16\]"),
        (torch.rand(2, 16, 16), r"gives \[2, 16, 16\] for 3 images"),
    ],
)
def test_maps_that_cannot_be_compared_are_named(class_token_net: nn.Module, maps: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        randomization_similarity(
            lambda net: lambda images, targets: maps, class_token_net, make_images(class_token_net), TARGETS
        )


def test_wrong_input_is_named(class_token_net: nn.Module) -> None:
    images = make_images(class_token_net)
    with pytest.raises(InputError, match=r"images \[3, 3, 64, 64\] and targets \[2\] do not fit"):
        randomization_similarity(Recorder(), class_token_net, images, TARGETS[:2])
    with pytest.raises(InputError, match="batch_size is 0"):
        randomization_similarity(Recorder(), class_token_net, images, TARGETS, batch_size=0)
    with pytest.raises(UnsupportedModelError):
        randomization_similarity(Recorder(), nn.Linear(3, 3), images, TARGETS)
