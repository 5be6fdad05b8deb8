"""A dataset whose labels are a model's: every class index of its samples through the map of names."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from litcam.data.batch import VOID, Sample
from litcam.data.classes import ClassMap


@dataclass(frozen=True)
class LeftOut:
    """What is left out because the model does not know its class.

    Attributes:
        images: how many images, all of whose classes are unknown.
        classes: how many images have each of the unknown classes, by name.
    """

    images: int
    classes: dict[str, int]


class Relabelled(Dataset[Sample]):
    """A dataset in a model's classes: labels, classes of boxes and planted cues are the model's indices.

    Of an image, the classes that the model does not know are left out with their boxes, whose pixels in the mask become
    background; an image that has no other class is left out.

    Args:
        dataset: in its own classes; indices beyond its length are those of later epochs. Its ``labels_of(index)`` saves
            reading the images to know their classes.
        classes: which of the model's classes its own are.

    Attributes:
        left_out: how much.
    """

    def __init__(self, dataset: Dataset[Any], classes: ClassMap) -> None:
        self.dataset = dataset
        self.classes = classes
        self._length: int = len(dataset)  # type: ignore[arg-type]  # ours have a length
        self._index = torch.tensor([-1 if index is None else index for index in classes.indices])
        self._kept = torch.arange(self._length)
        self.left_out = LeftOut(0, {})
        if classes.unknown:
            self._leave_out()

    def without_annotations(self) -> "Relabelled":
        """The same images and labels without boxes and masks, as :meth:`ImageFiles.without_annotations`."""
        return Relabelled(self.dataset.without_annotations(), self.classes)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> Sample:
        epoch, place = divmod(index, len(self))
        sample: dict[str, Any] = dict(self.dataset[epoch * self._length + int(self._kept[place])])
        sample["label"] = self._label(sample["label"])
        if sample.get("cue", -1) >= 0:
            sample["cue"] = int(self._index[sample["cue"]])
        if "instance_labels" in sample:
            labels = self._index[sample["instance_labels"]]
            known = labels >= 0
            sample["instance_labels"] = labels[known]
            sample["boxes"] = sample["boxes"][known]
            if "mask" in sample and not known.all():
                sample["mask"] = _numbers(known)[sample["mask"].long()]
        return sample  # type: ignore[return-value]  # the keys are those that it had

    def _label(self, label: int | Tensor) -> int | Tensor:
        if not isinstance(label, Tensor) or label.ndim == 0:
            return int(self._index[int(label)])
        known = self._index >= 0
        translated = torch.zeros(len(self.classes.model.ids), dtype=torch.bool)
        translated[self._index[known]] = label[known]
        return translated

    def _leave_out(self) -> None:
        """Find the images that have none of the model's classes, and count the classes that it does not know."""
        labels_of = getattr(self.dataset, "labels_of", self._read_labels)
        counts: Counter[str] = Counter()
        kept = []
        for place in range(self._length):
            labels = labels_of(place)
            unknown = [label for label in labels if self.classes.indices[label] is None]
            counts.update(self.classes.data.names[label] for label in unknown)
            if len(unknown) < len(labels) or not labels:
                kept.append(place)
        self._kept = torch.tensor(kept, dtype=torch.int64)
        self.left_out = LeftOut(self._length - len(kept), dict(counts))

    def _read_labels(self, place: int) -> Sequence[int]:
        label = self.dataset[place]["label"]
        return label.nonzero()[:, 0].tolist() if isinstance(label, Tensor) and label.ndim else [int(label)]


def _numbers(known: Tensor) -> Tensor:
    """The new value of each of a mask's 256, when only these of its instances stay: uint8 [256]."""
    numbers = torch.zeros(256, dtype=torch.uint8)
    numbers[VOID] = VOID
    numbers[1 : len(known) + 1][known] = torch.arange(1, int(known.sum()) + 1, dtype=torch.uint8)
    return numbers
