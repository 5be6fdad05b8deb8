"""Controls: maps that know nothing of the model. A method that does not beat them has shown nothing."""

import zlib

import torch
from torch import Tensor, nn

from litcam.errors import InputError
from litcam.explainers.base import Explainer, register
from litcam.vit.trace import AttentionTrace


@register("random")
class Random(Explainer):
    """Independent uniform noise per patch: what any metric gives by chance.

    The noise follows from the seed and the image's pixels, so that an image has the same map in every batch, and no
    random generator is touched.

    Args:
        net: the model.
        seed: of the noise.
    """

    class_specific = False
    is_control = True

    def __init__(self, net: nn.Module, seed: int = 0) -> None:
        super().__init__(net)
        self.seed = seed

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        images = trace.images.float().cpu().numpy()
        generator = torch.Generator()
        noise = []
        for image in images:
            generator.manual_seed(zlib.crc32(image.tobytes(), self.seed))
            noise.append(torch.rand(trace.grid, generator=generator))
        return torch.stack(noise)[:, None].to(trace.logits.device)


@register("center")
class Center(Explainer):
    """A Gaussian at the centre of the image: what a dataset's photographers give for free.

    Args:
        net: the model.
        sigma: standard deviation, as a share of each side of the image.

    Raises:
        InputError: for a sigma that is not positive.
    """

    class_specific = False
    is_control = True

    def __init__(self, net: nn.Module, sigma: float = 0.25) -> None:
        super().__init__(net)
        if not sigma > 0:
            raise InputError(f"sigma is {sigma}; it has to be positive.")
        self.sigma = sigma

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        rows, columns = (
            torch.exp(-0.5 * (((torch.arange(n, device=trace.logits.device) + 0.5) / n - 0.5) / self.sigma) ** 2)
            for n in trace.grid
        )
        return torch.outer(rows, columns).expand(len(trace.images), 1, -1, -1)


@register("uniform")
class Uniform(Explainer):
    """The same value at every patch: no explanation at all.

    A constant map is degenerate. :meth:`Explanation.upsample` turns it into zeros, localization finds an empty region
    in it, and perturbation removes the pixels in an order that it does not say. Its scores are those of a method that
    failed on every image.

    Args:
        net: the model.
    """

    class_specific = False
    is_control = True

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        return torch.ones(len(trace.images), 1, *trace.grid, device=trace.logits.device)
