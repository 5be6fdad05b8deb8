"""ImageMetric: what every metric over images shares. It adds up a row of numbers per image, and scores the sums."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from litcam.errors import check_at_least
from litcam.metrics.functional.bootstrap import INTERVAL, poisson_weights


@dataclass(frozen=True)
class Measured:
    """What a metric sees in a batch of B images.

    Attributes:
        rows: float64 [n, S], the numbers of the images that it takes in.
        kept: bool [B], which of the images those are.
        keys: int64 [B], by which images are told apart when they are resampled.
        counts: how many images were left out, or were special, by the name of the count.
    """

    rows: Tensor
    kept: Tensor
    keys: Tensor
    counts: Mapping[str, Tensor] = field(default_factory=dict)

    def drawn_by(self, keys: Tensor) -> "Measured":
        """The same images, resampled by other keys [B], such as their places in a dataset."""
        return replace(self, keys=keys.to(self.keys.device))

    def join(self, other: "Measured") -> "Measured":
        """These images and others."""
        rows, kept, keys = (torch.cat([getattr(self, name), getattr(other, name)]) for name in ("rows", "kept", "keys"))
        names = dict.fromkeys([*self.counts, *other.counts])
        counts = {name: sum(m.counts[name] for m in (self, other) if name in m.counts) for name in names}
        return Measured(rows, kept, keys, {name: torch.as_tensor(count) for name, count in counts.items()})


class ImageMetric(Metric, ABC):
    """A metric that adds up one row of numbers per image; its scores follow from the sums.

    ``compute()`` gives the scores; between ``<score>_low`` and ``<score>_high`` the 95 % interval of each, of the
    Poisson bootstrap over images; and the counts ``num_images`` (taken in) and ``num_degenerate`` (left out).

    Exact over batches and processes, the interval too: the state is sums, and how often an image is drawn in a resample
    follows from its map alone, or from a key that the caller gives it (:meth:`Measured.drawn_by`).

    A :class:`torchmetrics.MetricCollection` lets metrics share their states if these are equal after the first batch,
    and would then take one metric's sums for those of another whose options only tell later. Each of these keeps its
    own, in whatever options it differs.

    Args:
        columns: S, the length of a row.
        resamples: of the bootstrap; 0 for no intervals.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        InputError: for a negative number of resamples.
    """

    is_differentiable = False
    full_state_update = False
    counted: ClassVar[tuple[str, ...]] = ("num_images", "num_degenerate")
    column_names: ClassVar[tuple[str, ...]] = ()  # of metrics whose columns have scores for their means

    sums: Tensor
    num_images: Tensor
    num_degenerate: Tensor
    never_equal: Tensor

    def __init__(self, columns: int, resamples: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_at_least("resamples", resamples, least=0)
        self.resamples = resamples
        self.columns = columns
        # Row 0 is of the images as they are; the others are of the resamples, with the images drawn in the last column.
        self.add_state("sums", torch.zeros(1 + resamples, columns + 1, dtype=torch.float64), dist_reduce_fx="sum")
        for count in self.counted:
            self.add_state(count, torch.tensor(0), dist_reduce_fx="sum")
        # NaN equals nothing, itself neither: no comparison of states finds those of two metrics the same.
        self.add_state("never_equal", torch.tensor(torch.nan), dist_reduce_fx="sum")

    @property
    @abstractmethod
    def description(self) -> str:
        """In a sentence, how the numbers come about."""

    @abstractmethod
    def measure(self, *args: Any, **kwargs: Any) -> Measured:
        """The rows of a batch of images."""

    def scores(self, sums: Tensor, num_images: Tensor) -> dict[str, Tensor]:
        """Scores by name of sums [..., S] over so many images [...]; the row of one image gives the scores of it.

        Here the means of the columns.
        """
        return dict(zip(self.column_names, (sums / num_images[..., None]).unbind(-1), strict=True))

    def nothing(self, device: torch.device) -> Measured:
        """The measure of no image."""
        rows = torch.zeros(0, self.columns, dtype=torch.float64, device=device)
        nobody = torch.zeros(0, dtype=torch.int64, device=device)
        return Measured(rows, nobody.bool(), nobody)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Add images; takes what :meth:`measure` takes, or what it gave."""
        self.add(args[0] if args and isinstance(args[0], Measured) else self.measure(*args, **kwargs))

    def add(self, measured: Measured) -> None:
        """Add images that have been measured."""
        rows = torch.cat([measured.rows, torch.ones_like(measured.rows[:, :1])], 1).to(self.sums.device)
        weights = poisson_weights(measured.keys[measured.kept].to(self.sums.device), self.resamples)
        self.sums[0] += rows.sum(0)
        self.sums[1:] += weights @ rows
        self.num_images += len(rows)
        for name, count in measured.counts.items():
            setattr(self, name, getattr(self, name) + count.to(self.sums.device))

    def compute(self) -> dict[str, Tensor]:
        """Scores, their intervals and the counts, by name; over all processes."""
        return self.summarize()

    def summarize(self) -> dict[str, Tensor]:
        """The same of what this object has seen by itself."""
        scores = self.scores(self.sums[0, :-1], self.sums[0, -1])
        intervals: dict[str, Tensor] = {}
        if self.resamples:
            quantiles = torch.tensor(INTERVAL, dtype=torch.float64, device=self.sums.device)
            for name, resampled in self.scores(self.sums[1:, :-1], self.sums[1:, -1]).items():
                low, high = resampled.nanquantile(quantiles, dim=0)
                intervals |= {f"{name}_low": low, f"{name}_high": high}
        return {**scores, **intervals, **self.counts}

    @property
    def counts(self) -> dict[str, Tensor]:
        """The counts by name."""
        return {count: getattr(self, count) for count in self.counted}


class RegionMetric(ImageMetric):
    """A metric of maps against true regions, which also leaves out images without one: ``num_without_region``."""

    higher_is_better = True
    counted = (*ImageMetric.counted, "num_without_region")

    num_without_region: Tensor


def leave_out(rows: Tensor, keys: Tensor, degenerate: Tensor, without_region: Tensor) -> Measured:
    """Rows [B, S] without the images whose map says nothing and those without a region; each counts once."""
    without_region = without_region & ~degenerate
    kept = ~degenerate & ~without_region
    counts = {"num_degenerate": degenerate.sum(), "num_without_region": without_region.sum()}
    return Measured(rows[kept], kept, keys, counts)
