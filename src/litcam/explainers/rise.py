"""RISE: the average of random masks, weighted by what the net makes of the masked image."""

from collections.abc import Iterator
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litcam.errors import InputError, check_at_least
from litcam.explainers.base import Explainer, register
from litcam.vit.context import eager
from litcam.vit.sdpa import full
from litcam.vit.trace import AttentionTrace


@register("rise")
class RISE(Explainer):
    """RISE (Petsiuk, Das & Saenko, BMVC 2018), equation 6: S(λ) = 1/(E[M]·N) Σ_i f(I ⊙ M_i)·M_i(λ).

    f is the softmax probability of the class and E[M] the probability of a cell. A mask (section 3.2 of the paper) is
    a grid of cells, each on or off, enlarged bilinearly to one cell more than the image in each direction and cut at a
    random offset. Masking multiplies the normalised image: what is hidden becomes the mean colour, as in the authors'
    code.

    The masks follow from the seed alone, so that an image has the same map in every batch, and no random generator is
    touched. All classes come from the same forwards: ``num_masks`` of them per image. The maps have the size of the
    image, [B, K, H, W].

    A net that ignores its image gets no constant map, but how often each pixel was uncovered: the noise of any map of
    RISE, of the order 1/√N.

    Args:
        net: the model.
        num_masks: N, random masks; the authors take 4000 for 224 by 224 pixels.
        cells: of a mask's grid, along each side of the image.
        probability: of a cell to be uncovered.
        seed: of the masks.
        batch_size: masked images in one forward; only memory and speed depend on it.

    Raises:
        InputError: for a probability outside ]0, 1[, or a number below 1.
    """

    on_pixels = True
    needs_tokens = False

    def __init__(
        self,
        net: nn.Module,
        num_masks: int = 4000,
        cells: int = 7,
        probability: float = 0.5,
        seed: int = 0,
        batch_size: int = 128,
    ) -> None:
        super().__init__(net)
        check_at_least("num_masks", num_masks)
        check_at_least("cells", cells)
        check_at_least("batch_size", batch_size)
        if not 0 < probability < 1:
            raise InputError(f"probability is {probability}; it has to lie between 0 and 1.")
        self.num_masks = num_masks
        self.cells = cells
        self.probability = probability
        self.seed = seed
        self.batch_size = batch_size

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        images = trace.images
        height, width = images.shape[-2:]
        heatmaps = images.new_zeros(*targets.shape, height, width, dtype=torch.float32)  # [B, K, H, W]
        for masks in self._masks(height, width):
            masks = masks.to(images.device)  # [n, H, W]
            for image, classes, heatmap in zip(images, targets, heatmaps, strict=True):
                with eager():
                    logits = trace.module(image * masks[:, None].to(image.dtype))  # [n, C]
                scores = trace.probabilities(full(logits))[:, classes]  # [n, K]
                heatmap += torch.einsum("nk,nhw->khw", scores, masks.to(scores))
        return heatmaps / (self.probability * self.num_masks)

    def _masks(self, height: int, width: int) -> Iterator[Tensor]:
        """All masks, at most ``batch_size`` at a time: float32 [n, H, W] in [0, 1]."""
        cell = ceil(height / self.cells), ceil(width / self.cells)
        size = [(self.cells + 1) * side for side in cell]
        generator = torch.Generator().manual_seed(self.seed)
        # Grids and offsets are small: drawn at once, they do not depend on batch_size.
        grids = torch.rand(self.num_masks, self.cells, self.cells, generator=generator) < self.probability
        tops, lefts = (torch.randint(side, (self.num_masks,), generator=generator).tolist() for side in cell)
        for first in range(0, self.num_masks, self.batch_size):
            chunk = slice(first, first + self.batch_size)
            large = F.interpolate(grids[chunk, None].float(), size=size, mode="bilinear", align_corners=False)[:, 0]
            yield torch.stack(
                [
                    mask[top : top + height, left : left + width]
                    for mask, top, left in zip(large, tops[chunk], lefts[chunk], strict=True)
                ]
            )
