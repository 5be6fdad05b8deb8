"""The sanity check by model randomisation: does the map depend on what the model has learned?"""

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from litcam.errors import InputError, check_at_least
from litcam.metrics.functional.adcc import Explain
from litcam.metrics.map_similarity import SSIM_WINDOW, MapSimilarity
from litcam.vit.model import ViT, find_vit

# What stands before the blocks, by the first words of its parameters' names in timm, torchvision and transformers.
_EMBEDDING = (
    *("patch_embed", "embeds", "embeddings", "conv_proj"),
    *("pos_embed", "encoder.pos_embedding", "rope", "rel_pos_bias"),
    *("cls_token", "class_token", "reg_token", "dist_token", "norm_pre"),
)


@dataclass(frozen=True)
class RandomizationSimilarity:
    """How alike maps of a trained and of a randomised net are, at every stage of the cascade.

    Attributes:
        stages: the part that was randomised last, with all those before it: ``"head"``, ``"block 11"``, …,
            ``"block 0"``, ``"patch embedding"``.
        spearman: rank correlation of the two maps, mean over images: float64 [stages], in [-1, 1].
        ssim: structural similarity of the two maps, each scaled to [0, 1]: the same.
        spearman_low: lower end of its 95 % bootstrap interval over images [stages], as for the three that follow.
        spearman_high: upper end.
        ssim_low: lower end.
        ssim_high: upper end.
        num_images: averaged at each stage [stages]; without any, the means are NaN.
        num_degenerate: images left out, since one of their two maps is constant or holds NaN [stages].
    """

    stages: tuple[str, ...]
    spearman: Tensor
    ssim: Tensor
    spearman_low: Tensor
    spearman_high: Tensor
    ssim_low: Tensor
    ssim_high: Tensor
    num_images: Tensor
    num_degenerate: Tensor


def randomization_similarity(
    make_explainer: Callable[[nn.Module], Explain],
    net: nn.Module,
    images: Tensor,
    targets: Tensor,
    batch_size: int = 32,
    seed: int = 0,
) -> RandomizationSimilarity:
    """Cascading model randomisation (Adebayo et al., NeurIPS 2018, section 4.1): low similarity is what one wants.

    From the head to the patch embedding the parameters lose what they have learned, stage by stage, and each time the
    images are explained anew for the same classes. A method whose maps stay as they were does not look at the model.

    A parameter is drawn anew from the normal distribution of its own mean and deviation, so that the scale of every
    layer stays; one whose values are all the same stays itself. The net is a deep copy in evaluation mode: the user's
    own is not touched, nor is any random generator. The head has all that follows the blocks (norm, pooling), the
    patch embedding all that precedes them (positions, class and register tokens).

    SSIM is that of torchmetrics: a Gaussian window of 11 by 11 pixels with σ = 1.5 at every pixel, mirrored borders.

    Args:
        make_explainer: gives for a net a callable of images [b, 3, H, W] and classes [b], which gives maps [b, h, w]::

                def make_explainer(net):
                    explainer = litcam.create_explainer("agcam", net)
                    return lambda images, targets: explainer(images, targets).upsample((224, 224))

        net: a Vision Transformer, or a module that holds one and returns logits.
        images: normalised float [B, 3, H, W].
        targets: class indices [B].
        batch_size: images explained at a time; bounds the memory.
        seed: of the new parameters.

    Raises:
        InputError: if images and targets do not fit, or maps are not [b, h, w] of at least 11 by 11 pixels.
        UnsupportedModelError: if there is no Vision Transformer in ``net``.
    """
    check_at_least("batch_size", batch_size)
    if images.ndim != 4 or len(images) == 0 or targets.shape != (len(images),):
        raise InputError(
            f"images {list(images.shape)} and targets {list(targets.shape)} do not fit: "
            "[B, 3, H, W] and [B] are needed."
        )
    vit = find_vit(deepcopy(find_vit(net).root).eval())

    def explain() -> Tensor:
        explainer = make_explainer(vit.root)
        parts = zip(images.split(batch_size), targets.split(batch_size), strict=True)
        return torch.cat([_checked(explainer(*part), len(part[0])) for part in parts])

    trained = explain()
    generator = torch.Generator().manual_seed(seed)
    stages = randomization_stages(vit)
    results = []
    for parameters in stages.values():
        randomize(parameters, generator)
        similarity = MapSimilarity()
        similarity.update(trained, explain())
        results.append(similarity.compute())
    columns = {name: torch.stack([result[name] for result in results]) for name in results[0]}
    return RandomizationSimilarity(tuple(stages), **columns)


def randomization_stages(vit: ViT) -> dict[str, list[nn.Parameter]]:
    """Every parameter of a module with a Vision Transformer, in the stages of the cascade: from the head down."""
    blocks = [list(block.parameters()) for block in vit.blocks]
    embedding = [parameter for name, parameter in vit.net.named_parameters() if name.startswith(_EMBEDDING)]
    elsewhere = {parameter for parameters in (*blocks, embedding) for parameter in parameters}
    head = [parameter for parameter in vit.root.parameters() if parameter not in elsewhere]
    numbered = {f"block {number}": blocks[number] for number in reversed(range(len(blocks)))}
    return {"head": head, **numbered, "patch embedding": embedding}


@torch.no_grad()
def randomize(parameters: Iterable[nn.Parameter], generator: torch.Generator) -> None:
    """Draw parameters anew, in place: normal, with the mean and the deviation that each of them has."""
    for parameter in parameters:
        values = parameter.float()
        noise = torch.randn(parameter.shape, generator=generator).to(values.device)
        parameter.copy_(values.mean() + values.std(correction=0) * noise)


def _checked(maps: Tensor, count: int) -> Tensor:
    """Maps of so many images as they have to be, without their graph."""
    if maps.ndim != 3 or len(maps) != count or min(maps.shape[1:]) < SSIM_WINDOW:
        raise InputError(
            f"The explainer gives {list(maps.shape)} for {count} images; maps [{count}, h, w] of at least "
            f"{SSIM_WINDOW} by {SSIM_WINDOW} pixels are needed: enlarge them."
        )
    return maps.detach()
