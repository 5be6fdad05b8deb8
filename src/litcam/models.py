"""The small Vision Transformer that litcam ships, registered with timm: its weights come with the package.

They were made by two commands:
    python train.py --config configs/pretrain_digits.yaml
    python -m litcam.models runs/pretrain_digits/version_0/checkpoints/best.ckpt
"""

import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from litcam.checkpoints import read_weights
from litcam.errors import CheckpointError, some

WEIGHTS = Path(__file__).parent / "weights" / "vit_mini_patch8_64.digits.safetensors"

default_cfgs = generate_default_cfgs(
    {
        "vit_mini_patch8_64.digits": {
            "file": str(WEIGHTS),
            "num_classes": 10,
            "label_names": tuple(map(str, range(10))),
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


def export_weights(checkpoint: Path, output: Path = WEIGHTS) -> None:
    """Write the net of a checkpoint of train.py as safetensors, in half precision: under 1 MB."""
    net = {name: tensor.half() for name, tensor in read_weights(checkpoint).items()}
    if lost := [name for name, tensor in net.items() if not bool(tensor.isfinite().all())]:
        raise CheckpointError(f"{checkpoint} holds weights that are not finite in half precision: {some(lost)}.")
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(net, output)


if __name__ == "__main__":
    export_weights(Path(sys.argv[1]))
