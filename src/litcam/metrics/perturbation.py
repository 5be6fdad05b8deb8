"""Perturbation: is the map true of the model?"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from litcam.errors import check_at_least, check_choice
from litcam.heatmaps import is_degenerate
from litcam.logits import is_regression
from litcam.metrics.functional.bootstrap import content_keys
from litcam.metrics.functional.fills import FillOptions
from litcam.metrics.functional.forwards import PRECISIONS, Net, Precision, check_batch
from litcam.metrics.functional.perturbation import find_protocol, perturbation_curves
from litcam.metrics.image_metric import ImageMetric, Measured


class Perturbation(ImageMetric):
    """Areas under the perturbation curves, under the protocol of a paper.

    ``"agcam"`` (Leem & Seo, AAAI 2024, table 4): pixels are set to 0 in normalised space at 0, 10, …, 100 %, y is the
    probability of the class. ``lerf`` and ``morf`` (least and most relevant first) are the means of the 11 points of
    the mean curves, ``abpc`` = lerf − morf. Higher lerf and abpc and lower morf are better. 18 forwards per image.

    ``"chefer"`` (Chefer, Gur & Wolf, CVPR 2021, table 1): pixels are black at 0, 10, …, 90 %, y is top-1 accuracy:
    whether the target is predicted, so targets are the true labels whichever class the maps explain. ``positive``
    (most relevant first, lower is better) and ``negative`` (least) are 100 times the trapezoid areas over 0 to 0.9, at
    most 90; the curves are shares in [0, 1]. Needs ``mean`` and ``std``. 18 forwards.

    ``"rise"`` (Petsiuk, Das & Saenko, BMVC 2018, table 1), the most relevant pixels first in 224 equal steps (224 of
    224 by 224 pixels each), y is the probability of the class, which the authors predict. ``deletion`` sets pixels to
    0 in normalised space (lower is better), ``insertion`` puts them into the blurred image (higher is better); both
    are trapezoid areas over 0 to 1. 447 forwards: for one row of an image of H rows per step take ``steps=H``.

    ``"road"`` (Rong et al., ICML 2022): pixels are imputed from their neighbours with noise of 0.01 at 10, 20, …, 90 %,
    y is the probability of the class. ``lerf`` and ``morf`` are the means of the 9 points. The noise is one of the
    normalised image; with ``mean`` and ``std`` one of the image of [0, 1], as in the authors' code. 18 forwards, and as
    many sparse linear systems on the CPU.

    A net of a single output z has the classes 0 and 1 with the probabilities sigmoid(−z) and sigmoid(z); where it was
    declared a regression (:func:`litcam.declare_regression`), y is z itself, the target is 0, and ``"chefer"`` is
    refused.

    ``compute()`` gives these, the mean curves by name (``lerf_curve`` …) and the counts ``num_images`` (averaged) and
    ``num_degenerate`` (constant maps, and maps with NaN: they are in no mean). Without any image the means are NaN.

    Exact over batches and processes: the state is sums in double precision, and noise follows from the image alone.

    Args:
        protocol: ``"agcam"``, ``"chefer"``, ``"rise"`` or ``"road"``.
        batch_size: perturbed images per forward; bounds the memory.
        steps: into which the pixels are divided, if not as the protocol has it.
        mean: per channel, of the normalisation of the images.
        std: per channel, of the same.
        seed: of road's noise.
        precision: ``"fp32"``, or ``"bf16"`` for forwards under autocast.
        multi_label: whether the classes do not exclude each other: y is then of the sigmoid, top-1 a positive logit.
        resamples: of the bootstrap behind the intervals; 0 for none.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        InputError: for an option out of its range, or without ``mean`` and ``std`` where the protocol needs them.
    """

    def __init__(
        self,
        protocol: str = "agcam",
        batch_size: int = 128,
        steps: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        precision: Precision = "fp32",
        multi_label: bool = False,
        resamples: int = 1000,
        **kwargs: Any,
    ) -> None:
        options = FillOptions(
            mean=None if mean is None else tuple(mean), std=None if std is None else tuple(std), seed=seed
        )
        found = find_protocol(protocol, steps, options, multi_label)
        super().__init__(2 * len(found.points), resamples, **kwargs)
        check_at_least("batch_size", batch_size)
        check_choice("precision", precision, PRECISIONS)
        self.protocol = found
        self.options = options
        self.batch_size = batch_size
        self.precision: Precision = precision

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        return self.protocol.description + ("; bfloat16 autocast" if self.precision == "bf16" else "")

    def measure(
        self, net: Net, images: Tensor, heatmaps: Tensor, targets: Tensor, logits: Tensor | None = None
    ) -> Measured:
        """Perturb images.

        Args:
            net: gives logits of normalised images.
            images: normalised float [B, 3, H, W].
            heatmaps: [B, H, W].
            targets: class indices [B].
            logits: [B, C] of the images, where they are known already: saves a forward.

        Raises:
            InputError: if shapes, dtypes or classes do not fit.
        """
        check_batch(images, heatmaps, targets, logits, is_regression(net))
        kept = ~is_degenerate(heatmaps)
        rows = self.nothing(images.device).rows
        if kept.any():
            known = None if logits is None else logits[kept]
            both = perturbation_curves(
                net,
                images[kept],
                heatmaps[kept],
                targets[kept],
                known,
                self.batch_size,
                self.protocol,
                self.options,
                self.precision,
            )
            rows = torch.cat(both, 1)
        keys = content_keys(images, heatmaps, targets)
        return Measured(rows, kept, keys, {"num_degenerate": (~kept).sum()})

    def scores(self, sums: Tensor, num_images: Tensor) -> dict[str, Tensor]:
        """Areas and curves by name."""
        first, second = (sums / num_images[..., None]).chunk(2, dim=-1)
        return self.protocol.scores((first, second))
