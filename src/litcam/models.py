"""The small Vision Transformer that litcam ships, registered with timm: its weights come with the package."""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

WEIGHTS = Path(__file__).parent / "weights" / "vit_mini_patch8_64.digits.safetensors"

default_cfgs = generate_default_cfgs(
    {
        "vit_mini_patch8_64.digits": {
            "file": str(WEIGHTS),
            "num_classes": 10,
            "input_size": (3, 64, 64),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def vit_mini_patch8_64(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT with 64 px images, patches of 8 px, width 96, depth 4, 3 heads and MLP ratio 2: 295 k parameters.

    ``pretrained=True`` loads the packaged weights, trained by ``configs/pretrain_digits.yaml``.
    """
    architecture = {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 2}
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        "vit_mini_patch8_64",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **{**architecture, **kwargs},
    )
    return model
