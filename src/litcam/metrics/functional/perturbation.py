"""Perturbation of images by the order of their maps, one curve per image. Knows no explainer and no dataset."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from litcam.errors import InputError, check_at_least, check_choice
from litcam.logits import class_scores, is_regression
from litcam.metrics.functional.fills import BLACK, BLURRED, IMPUTED, NO_OPTIONS, ZERO, Fill, FillOptions, Paint
from litcam.metrics.functional.forwards import Net, Precision, check_batch, class_probability, forward, inference


@dataclass(frozen=True)
class Curve:
    """One of the two curves of a protocol.

    Attributes:
        name: as the protocol's authors call it.
        first: which pixels of the map come first.
        fill: what stands where there is no pixel of the image.
        inserts: whether pixels are inserted into the filled image, instead of removed from the whole one.
    """

    name: str
    first: Literal["lowest", "highest"]
    fill: Fill
    inserts: bool = False

    @property
    def label(self) -> str:
        """What is done, for people."""
        return f"{'most' if self.first == 'highest' else 'least'} relevant {'inserted ' if self.inserts else ''}first"


def is_predicted(logits: Tensor, targets: Tensor, multi_label: bool = False, regression: bool = False) -> Tensor:
    """Whether the class is predicted, by the highest logit, with many labels by a positive one: float64 [B], 0 or 1.

    NaN where a logit is not finite: of NaN the highest would always be the same class.

    Raises:
        InputError: for a regression, which predicts no class.
    """
    if regression:
        raise InputError(
            "Right predictions can be counted of classes alone, but the model was declared a regression: take a "
            "protocol that follows its value, agcam, rise or road."
        )
    scores = class_scores(logits, regression, multi_label)
    highest = scores.gather(1, targets[:, None])[:, 0] > 0 if multi_label else scores.argmax(1) == targets
    return highest.double().where(logits.isfinite().all(1), torch.nan)


def mean_of_points(curve: Tensor, steps: int) -> Tensor:
    """Mean of the points of a curve [..., n]."""
    return curve.mean(-1)


def trapezoids(curve: Tensor, steps: int) -> Tensor:
    """Area under a curve [..., n] whose points lie 1/steps apart; not divided by the length that it covers."""
    return torch.trapezoid(curve, dx=1 / steps)


@dataclass(frozen=True)
class Protocol:
    """How a perturbation is done and read.

    At point k of a curve the first floor(pixels · k / steps) pixels of its order are removed (or inserted).

    Attributes:
        name: as the papers call it, or its authors.
        summary: what is done to the pixels, and how y is read.
        curves: both of them.
        steps: into which the pixels are divided.
        left_out: how many points at the beginning (0 % of the pixels) and at the end (100 %) are none of the curve.
        outcome: y of logits [b, C], classes [b], whether those do not exclude each other, and whether the model is a
            regression: float64 [b].
        area: of a curve [..., n] and the number of steps: [...].
        unit: of the areas; 100 for per cent.
        difference: name of the first area minus the second, where the authors give one.
        multi_label: whether the classes do not exclude each other, so that y is of the sigmoid, not of the softmax.
    """

    name: str
    summary: str
    curves: tuple[Curve, Curve]
    steps: int = 10
    left_out: tuple[int, int] = (0, 0)
    outcome: Callable[[Tensor, Tensor, bool, bool], Tensor] = class_probability
    area: Callable[[Tensor, int], Tensor] = mean_of_points
    unit: float = 1.0
    difference: str | None = None
    multi_label: bool = False

    def y(self, logits: Tensor, targets: Tensor, regression: bool = False) -> Tensor:
        """What the net makes of the classes [b], from its logits [b, C]: float64 [b]."""
        return self.outcome(logits, targets, self.multi_label, regression)

    @property
    def description(self) -> str:
        """In a sentence, how the numbers come about."""
        return f"{self.name}: {self.summary}; {self.steps} steps" + ("; sigmoid" if self.multi_label else "")

    @property
    def y_label(self) -> str:
        """What y is, for people."""
        return "share predicted" if self.outcome is is_predicted else "probability of the class"

    @property
    def points(self) -> range:
        """The k of the points of a curve."""
        return range(self.left_out[0], self.steps + 1 - self.left_out[1])

    def scores(self, curves: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Areas of both curves [..., n], their difference and the curves, by name."""
        first, second = (self.unit * self.area(curve, self.steps) for curve in curves)
        names = [curve.name for curve in self.curves]
        difference = {} if self.difference is None else {self.difference: first - second}
        return {
            **dict(zip(names, (first, second), strict=True)),
            **difference,
            **{f"{name}_curve": curve for name, curve in zip(names, curves, strict=True)},
        }


AGCAM = Protocol(  # Leem & Seo, AAAI 2024
    "agcam",
    "pixels set to 0 in normalised space, probability of the class, mean of the points",
    (Curve("lerf", "lowest", ZERO), Curve("morf", "highest", ZERO)),
    difference="abpc",
)
CHEFER = Protocol(  # Chefer, Gur & Wolf, CVPR 2021
    "chefer",
    "pixels set to black, top-1 accuracy, trapezoid area from 0 to 90 %, times 100",
    (Curve("positive", "highest", BLACK), Curve("negative", "lowest", BLACK)),
    left_out=(0, 1),
    outcome=is_predicted,
    area=trapezoids,
    unit=100.0,
)
RISE = Protocol(  # Petsiuk, Das & Saenko, BMVC 2018
    "rise",
    "pixels set to 0 in normalised space (deletion) or put into the blurred image (insertion), probability of the "
    "class, trapezoid area",
    (Curve("deletion", "highest", ZERO), Curve("insertion", "highest", BLURRED, inserts=True)),
    steps=224,
    area=trapezoids,
)
ROAD = Protocol(  # Rong et al., ICML 2022
    "road",
    "pixels imputed from their neighbours with noise, probability of the class, mean of the points from 10 to 90 %",
    (Curve("lerf", "lowest", IMPUTED), Curve("morf", "highest", IMPUTED)),
    left_out=(1, 1),
)
PROTOCOLS = {protocol.name: protocol for protocol in (AGCAM, CHEFER, RISE, ROAD)}


def find_protocol(
    name: str, steps: int | None = None, options: FillOptions = NO_OPTIONS, multi_label: bool = False
) -> Protocol:
    """The protocol of a name, with another number of steps and for classes that do not exclude each other if wanted.

    Raises:
        InputError: for an unknown name, fewer than two steps, or a protocol that cannot do without mean and std.
    """
    check_choice("protocol", name, PROTOCOLS)
    protocol = replace(PROTOCOLS[name], multi_label=multi_label)
    if options.mean is None and any(curve.fill.in_image_space for curve in protocol.curves):
        raise InputError(
            f"The protocol {name} fills pixels in the image of [0, 1]: give it mean and std of the images' "
            "normalisation, per channel."
        )
    if steps is None:
        return protocol
    check_at_least("steps", steps, 2)
    return replace(protocol, steps=steps)


def perturbation_curves(
    net: Net,
    images: Tensor,
    heatmaps: Tensor,
    targets: Tensor,
    logits: Tensor | None = None,
    batch_size: int = 128,
    protocol: Protocol = AGCAM,
    options: FillOptions = NO_OPTIONS,
    precision: Precision = "fp32",
) -> tuple[Tensor, Tensor]:
    """What the net makes of a class while pixels are removed in the order of a map.

    Under the protocol of the AGCAM paper: at fractions 0, 0.1, …, 1 the lowest (LeRF, least relevant first) or highest
    (MoRF) pixels of each map are set to 0 in normalised space, on all channels. :class:`litcam.metrics.Perturbation`
    lists the other protocols.

    One stable sort per map serves both orders (the highest first are the lowest first reversed) and all points. What
    is the same for several points is computed once: the whole image for both curves, the empty image for the whole
    batch where it is the same for every image. So an image costs 18 forwards under the protocol of AGCAM (19 without
    its logits) instead of 22, and the batch one more.

    Args:
        net: gives logits [b, C] of normalised images [b, 3, H, W]; a module is run in evaluation mode. Of a single
            output the probability is the sigmoid's, and y the output itself where the net was declared a regression.
        images: normalised float [B, 3, H, W].
        heatmaps: [B, H, W].
        targets: class indices [B].
        logits: [B, C] of the unperturbed images, where they are known already.
        batch_size: images per forward; bounds the memory.
        protocol: one of ``PROTOCOLS``, or your own.
        options: of its fills.
        precision: ``"bf16"`` runs the forwards under autocast.

    Returns:
        Both curves of the protocol, LeRF and MoRF: float64 [B, points] each.

    Raises:
        InputError: if shapes, dtypes or classes do not fit, or the fill needs the normalisation of the images.
    """
    regression = is_regression(net)
    check_batch(images, heatmaps, targets, logits, regression)
    with inference(net, targets, precision) as call:
        batch = _Batch(call, images, heatmaps, targets, logits, batch_size, protocol, options, regression)
        first, second = (batch.run(curve) for curve in protocol.curves)
    return first, second


@dataclass
class _Batch:
    """Images on their way along the curves of a protocol, and what those have in common."""

    net: Callable[[Tensor], Tensor]
    images: Tensor
    heatmaps: Tensor
    targets: Tensor
    logits: Tensor | None
    batch_size: int
    protocol: Protocol
    options: FillOptions
    regression: bool

    def __post_init__(self) -> None:
        self._empty: dict[Fill, Tensor] = {}

    @cached_property
    def ranks(self) -> Tensor:
        """Place of every pixel in the rising order of its map [B, H·W]; ties in the order of the pixels."""
        order = torch.argsort(self.heatmaps.flatten(1), dim=1, stable=True)
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, places)  # the inverse permutation

    @cached_property
    def whole(self) -> Tensor:
        """y of the images with all their pixels [B]."""
        logits = forward(self.net, self.images, self.batch_size) if self.logits is None else self.logits
        return self.protocol.y(logits, self.targets, self.regression)

    def empty(self, fill: Fill, paint: Paint) -> Tensor:
        """y of the one image without any pixel [B], for each image's class."""
        if fill not in self._empty:
            index = torch.zeros(1, dtype=torch.int64, device=self.images.device)
            nothing = torch.zeros(1, 1, *self.images.shape[-2:], dtype=torch.bool, device=self.images.device)
            logits = self.net(paint(index, nothing)).expand(len(self.images), -1)
            self._empty[fill] = self.protocol.y(logits, self.targets, self.regression)
        return self._empty[fill]

    def run(self, curve: Curve) -> Tensor:
        """y at every point of a curve: float64 [B, points]."""
        device, (count, pixels) = self.images.device, self.ranks.shape
        paint = curve.fill.prepare(self.images, self.options)
        places = self.ranks if curve.first == "lowest" else pixels - 1 - self.ranks
        passed = [pixels * point // self.protocol.steps for point in self.protocol.points]
        values = torch.empty(len(passed), count, dtype=torch.float64, device=device)
        between = []
        for point, number in enumerate(passed):
            left = number if curve.inserts else pixels - number
            if left == pixels:
                values[point] = self.whole
            elif left == 0 and curve.fill.one_empty_image:
                values[point] = self.empty(curve.fill, paint)
            else:
                between.append(point)
        pairs = torch.cartesian_prod(torch.tensor(between, dtype=torch.int64), torch.arange(count)).to(device)
        borders = torch.tensor(passed, device=device)
        for chunk in pairs.split(self.batch_size):
            point, image = chunk.T
            kept = (places[image] >= borders[point, None]) ^ curve.inserts
            perturbed = paint(image, kept.view(-1, 1, *self.images.shape[-2:]))
            values[point, image] = self.protocol.y(self.net(perturbed), self.targets[image], self.regression)
        return values.T
