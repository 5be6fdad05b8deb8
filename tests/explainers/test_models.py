"""Every family of Vision Transformers: which way the explainers take through it, and that both ways agree."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

import litcam
from conftest import relative_error
from litcam.errors import UnsupportedModelError
from litcam.explainers.agcam import AGCAM
from litcam.explainers.reciprocam import ReciproCAM
from litcam.vit.recorder import record
from litcam.vit.trace import AttentionTrace

SIZES: dict[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}
SMALL = {"img_size": 64, **SIZES}
OF_14 = {"img_size": 56, **SIZES}  # patches of 14 pixels

TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", SMALL),
    "vit, 384 pixels": ("vit_tiny_patch16_384", {**SIZES, "depth": 2}),
    "vit, dynamic size": ("vit_tiny_patch16_224", {**SMALL, "dynamic_img_size": True}),
    "vit, not square": ("vit_tiny_patch16_224", {**SMALL, "img_size": (48, 80)}),
    "vit, registers": ("vit_tiny_patch16_224", {**SMALL, "reg_tokens": 4}),
    "vit, average pooling": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg"}),
    "vit, one norm": ("vit_tiny_patch16_224", {**SMALL, "global_pool": "avg", "fc_norm": False}),
    "deit": ("deit_tiny_patch16_224", SMALL),
    "distilled deit": ("deit_tiny_distilled_patch16_224", SMALL),
    "deit3": ("deit3_small_patch16_224", SMALL),
    "dinov2": ("vit_small_patch14_dinov2", OF_14),
    "dinov2, registers": ("vit_small_patch14_reg4_dinov2", OF_14),
    "dinov3": ("vit_small_patch16_dinov3", SMALL),
    "clip": ("vit_base_patch16_clip_224", SMALL),
    "siglip": ("vit_base_patch16_siglip_224", SMALL),
    "beit": ("beit_base_patch16_224", SMALL),
    "beit, class token": ("beit_base_patch16_224", {**SMALL, "global_pool": "token"}),
    "eva02": ("eva02_tiny_patch14_224", OF_14),
    "rope": ("vit_small_patch16_rope_224", SMALL),
    "rope, mixed": ("vit_small_patch16_rope_mixed_224", SMALL),
    "perception encoder": ("vit_pe_core_tiny_patch16_384", SMALL),
    "parallel blocks": ("vit_small_patch16_18x2_224", SMALL),
    "parallel attention and MLP": ("vit_tiny_patch16_224", {**SMALL, "block_fn": ParallelScalingBlock}),
    "norms after": ("vit_base_patch16_rpn_224", SMALL),
    "relative positions": ("vit_relpos_small_patch16_224", SMALL),
    "naflex": ("naflexvit_base_patch16_gap", SIZES),
}
CLASS_TOKEN = {  # the others pool patch tokens
    "vit", "vit, 384 pixels", "vit, dynamic size", "vit, not square", "vit, registers", "deit", "distilled deit",
    "deit3", "dinov2", "dinov2, registers", "clip", "beit, class token", "rope", "rope, mixed", "parallel blocks",
    "parallel attention and MLP", "torchvision", "forward_features", "transformers vit", "transformers deit",
}  # fmt: skip
CLOSED_FORM = CLASS_TOKEN - {"parallel blocks"}  # two attentions in the last block


class ForwardFeatures(nn.Module):
    """A user's module that calls no forward of its net."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model("vit_tiny_patch16_224", pretrained=False, **{**SMALL, "num_classes": 0})
        self.head = nn.Linear(48, 7)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone.forward_features(images)[:, 0])


def torchvision_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=3, num_heads=3, hidden_dim=48, mlp_dim=96, num_classes=7
    )


class Logits(nn.Module):
    """A user's module around a classifier of transformers."""

    def __init__(self, config: str, model: str, **options: Any) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
        arguments = {**sizes, "image_size": 64, "patch_size": 16, "num_labels": 7, **options}
        self.net = getattr(transformers, model)(getattr(transformers, config)(**arguments))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(pixel_values=images).logits


class Dinov3Probe(nn.Module):
    """A user's module around a headless DINOv3 of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Logits("DINOv3ViTConfig", "DINOv3ViTModel", num_register_tokens=4).net
        self.head = nn.Linear(48, 7)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(pixel_values=images).last_hidden_state[:, 0])


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "torchvision": torchvision_vit,
    "forward_features": ForwardFeatures,
    "transformers vit": lambda: Logits("ViTConfig", "ViTForImageClassification"),
    "transformers deit": lambda: Logits("DeiTConfig", "DeiTForImageClassificationWithTeacher"),
    "transformers dinov2": lambda: Logits("Dinov2Config", "Dinov2ForImageClassification"),
    "transformers dinov2, registers": lambda: Logits(
        "Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification"
    ),
    "transformers dinov3": Dinov3Probe,
}
FAMILIES = [*TIMM, *OTHERS]


def make_family(family: str) -> nn.Module:
    """A small random net whose weights are large enough for attentions and gradients to be uneven."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family in OTHERS:
            net = OTHERS[family]()
        else:
            name, arguments = TIMM[family]
            net = timm.create_model(name, pretrained=False, **arguments)
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.12)
            elif "gamma" in name or "lambda" in name:  # layer scales, which start at nearly nothing
                nn.init.constant_(parameter, 0.7)
    return net.eval()


def images_for(net: nn.Module, count: int = 2) -> Tensor:
    size = getattr(getattr(net, "patch_embed", None), "img_size", None) or (64, 64)
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


OF_ONE_FEATURE_MAP = {"gradcam", "gradcam_plusplus", "hirescam", "reciprocam"}  # what one attention reads


def traced(explainer: litcam.explainers.Explainer, images: Tensor) -> AttentionTrace:
    return record(explainer.vit, images, {explainer: explainer.read})


# Without the controls, the methods that only call the model, and those that say themselves which families they take;
# test_frontier.py has tokentm and token_dropping.
METHODS = sorted(
    set(litcam.list_explainers())
    - {"random", "center", "uniform", "rise", "score_cam", "attention_flow", "cam", "relevance"}
    - {"tokentm", "token_dropping"}
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_every_family_and_every_image_as_if_alone(family: str, name: str) -> None:
    net = make_family(family)
    images, targets = images_for(net), torch.tensor([[0, 3], [6, 2]])
    explainer = litcam.create_explainer(name, net)
    if family == "parallel blocks" and name in OF_ONE_FEATURE_MAP:
        with pytest.raises(UnsupportedModelError, match="several attentions, each with a norm of its own"):
            explainer(images, targets)
        return
    together = explainer(images, targets)
    assert together.heatmaps.shape[:2] == (2, 2)
    assert together.heatmaps.isfinite().all()
    torch.testing.assert_close(together.logits, net(images), rtol=1e-4, atol=1e-5)
    alone = torch.cat([explainer(images[i : i + 1], targets[i : i + 1]).heatmaps for i in range(2)])
    torch.testing.assert_close(together.heatmaps, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_agcam_replays_class_tokens_and_gives_what_differentiation_gives(family: str) -> None:
    explainer = AGCAM(make_family(family))
    trace, targets = traced(explainer, images_for(explainer.vit.net)), torch.tensor([[0, 3], [6, 2]])
    replayed = explainer._replayed(trace, targets)
    assert (replayed is not None) == (family in CLASS_TOKEN)
    if replayed is not None:
        for fast, slow in zip(replayed, explainer._differentiated(trace, targets), strict=True):
            assert relative_error(fast, slow) < 1e-5


@pytest.mark.parametrize("feature", ["norm1", "block"])
@pytest.mark.parametrize("keep_class_token", [True, False])
@pytest.mark.parametrize("family", sorted(CLOSED_FORM - {"vit, 384 pixels"}))  # 576 patches take the direct way long
def test_reciprocams_closed_form_gives_what_the_direct_way_gives(
    family: str, keep_class_token: bool, feature: Any
) -> None:
    explainer = ReciproCAM(make_family(family), keep_class_token=keep_class_token, feature=feature)
    trace = traced(explainer, images_for(explainer.vit.net))
    with torch.no_grad():
        closed, directly = explainer._in_closed_form(trace), explainer._directly(trace)
    assert closed is not None
    assert relative_error(closed, directly) < 1e-5


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "vit, 384 pixels"])
def test_reciprocam_takes_the_closed_form_where_a_class_token_has_one_attention(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = ReciproCAM(make_family(family), feature="block" if family == "parallel blocks" else "norm1")
    taken: list[bool] = []
    monkeypatch.setattr(
        explainer, "_directly", lambda trace: taken.append(True) or ReciproCAM._directly(explainer, trace)
    )
    explainer(images_for(explainer.vit.net))
    assert bool(taken) == (family not in CLOSED_FORM)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_attention_add_up_to_one_over_prefix_and_patch_tokens(family: str) -> None:
    explainer = litcam.create_explainer("raw_attention", make_family(family))
    trace = explainer.trace(images_for(explainer.vit.net))
    layers = torch.stack([rows for rows, _ in trace.readings[explainer]])  # [L, B, N]
    heads = layers.sum(-1)
    attentions = 2 if family == "parallel blocks" else 1  # of three heads each
    torch.testing.assert_close(heads, torch.full_like(heads, 3.0 * attentions))
    assert layers.shape[-1] == explainer.vit.num_prefix_tokens + trace.grid[0] * trace.grid[1]
