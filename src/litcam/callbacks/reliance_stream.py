"""RelianceStream: the reliance of a model on the images of a validation, batch by batch as they pass."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from litcam.callbacks.shared import Explained, of_all_processes
from litcam.data.batch import Regions
from litcam.errors import InputError
from litcam.metrics import Reliance
from litcam.metrics.functional.reliance import PartnerStream, Regarded
from litcam.metrics.image_metric import Measured


class RelianceStream:
    """Measures explained images, by their own forward and two more.

    Under ``"swap"`` an image's partner is the watched image of another class that came last before it in the dataset's
    order, in whatever batch and process; so some are measured only with a later batch. For that the processes exchange
    their watched images, batch by batch: all have to call :meth:`measure` after each batch, and :meth:`end`.

    Args:
        metric: how; what is measured is not added to it.
        regions: what the object is.
        who: takes part, for the errors.
        batches: how many every process has for sure; after these the exchange waits for the end.
    """

    def __init__(self, metric: Reliance, regions: Regions, who: str, batches: float) -> None:
        self.metric = metric
        self.regions: Regions = regions
        self.who = who
        self._exchanges = batches
        self._added: list[Regarded] = []  # and not yet exchanged
        self._own: set[int] = set()  # the places of all that were ever added
        self._partners = PartnerStream()

    def add(self, explained: Explained) -> None:
        """Take in the images of a batch.

        Raises:
            InputError: if images have several labels, or boxes or masks are missing.
        """
        if explained.multi_label:
            raise InputError(
                f"{self.who} follows the one class of an image, but the images have several labels; leave it out."
            )
        regions = explained.regions(self.regions, f"{self.who} removes")
        places = explained.indices.to(regions.device)
        images = Regarded(explained.trace.images, regions, explained.labels, explained.explanation.logits, places)
        self._net, self._device = explained.trace.module, explained.trace.images.device
        self._added.append(images)
        self._own.update(explained.indices.tolist())

    def measure(self) -> Iterator[tuple[Tensor, Measured]]:
        """Places in the dataset's order [n] of images of this process, and what was measured of these n."""
        if self.metric.fill != "swap":
            for images in self._added:
                yield images.places, self._measured(images)
            self._added = []
        elif self._exchanges > 0:
            self._exchanges -= 1
            yield from self._exchange()

    def end(self) -> Iterator[tuple[Tensor, Measured]]:
        """The rest, with those that have waited in vain for a partner."""
        if self.metric.fill == "swap":
            yield from self._exchange()
            yield from self._measure_own(self._partners.end())

    def _exchange(self) -> Iterator[tuple[Tensor, Measured]]:
        """Pair what all processes have added, and measure what of it is this process's."""
        added, self._added = self._added, []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            added = [images.to(torch.device("cpu")) for images in added]
        of_all = [images for part in of_all_processes(added) for images in part]
        if of_all:
            together = Regarded.join(of_all)
            yield from self._measure_own(self._partners.pair(together.take(together.places.argsort())))

    def _measure_own(self, pairs: Iterable[tuple[Regarded, Tensor, Tensor]]) -> Iterator[tuple[Tensor, Measured]]:
        for images, others, other_regions in pairs:
            own = torch.tensor([place in self._own for place in images.places.tolist()], device=others.device)
            if bool(own.any()):
                yield images.places[own], self._measured(images.take(own), others[own], other_regions[own])

    def _measured(self, images: Regarded, *partners: Tensor) -> Measured:
        images, partners = images.to(self._device), tuple(tensor.to(self._device) for tensor in partners)
        return self.metric.measure(self._net, images.images, images.regions, images.targets, images.logits, *partners)
