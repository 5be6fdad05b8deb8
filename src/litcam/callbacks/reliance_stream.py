"""RelianceStream: the reliance of a model on the images of a validation, batch by batch as they pass."""

from collections.abc import Iterator

from torch import Tensor

from litcam.callbacks.shared import Explained
from litcam.data.batch import Regions
from litcam.errors import InputError
from litcam.metrics import Reliance
from litcam.metrics.functional.forwards import Net
from litcam.metrics.functional.reliance import PartnerStream, Regarded
from litcam.metrics.image_metric import Measured


class RelianceStream:
    """Measures explained images, by their own forward and two more.

    Under ``"swap"`` an image's partner is the watched image of another class that came last before it, in whatever
    batches; so some are measured only with a later batch.

    Args:
        metric: how; what is measured is not added to it.
        regions: what the object is.
        who: takes part, for the errors.
    """

    def __init__(self, metric: Reliance, regions: Regions, who: str) -> None:
        self.metric = metric
        self.regions: Regions = regions
        self.who = who
        self._partners = PartnerStream()

    def measure(self, explained: Explained) -> Iterator[tuple[Tensor, Measured]]:
        """Places in the dataset's order [n] of images, and what was measured of these n.

        Raises:
            InputError: if images have several labels, or boxes or masks are missing.
        """
        if explained.multi_label:
            raise InputError(
                f"{self.who} follows the one class of an image, but the images have several labels; leave it out."
            )
        regions = explained.regions(self.regions, f"{self.who} removes")
        net, places = explained.trace.module, explained.indices.to(regions.device)
        images = Regarded(explained.trace.images, regions, explained.labels, explained.explanation.logits, places)
        if self.metric.fill != "swap":
            yield places, self._measured(net, images)
            return
        for paired, others, other_regions in self._partners.pair(images):
            yield paired.places, self._measured(net, paired, others, other_regions)

    def end(self, net: Net) -> Iterator[tuple[Tensor, Measured]]:
        """The images that have waited in vain for a partner; takes no forward."""
        for alone, others, other_regions in self._partners.end():
            yield alone.places, self._measured(net, alone, others, other_regions)

    def _measured(self, net: Net, images: Regarded, *partners: Tensor) -> Measured:
        return self.metric.measure(net, images.images, images.regions, images.targets, images.logits, *partners)
