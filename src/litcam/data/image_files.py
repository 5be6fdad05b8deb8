"""Datasets of image files: records to samples, and the base of every data module that reads files.

Knows no dataset's layout: subclasses of :class:`ImageFilesDataModule` say which records there are.
"""

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.utils.data import Dataset

from litcam.data.batch import VOID, Sample
from litcam.data.boxes import check_record, counted, fitted
from litcam.data.module import ImageDataModule, Split, StreamSampler, rank_and_world
from litcam.data.reading import (
    BadFileError,
    LeaveOut,
    Pixels,
    SampleError,
    bad_file,
    check_mask_values,
    printable,
    read_image,
    read_mask,
    refuse,
)
from litcam.data.records import Record, Records
from litcam.data.relabelled import Relabelled
from litcam.data.transforms import (
    Pipeline,
    TransformSpec,
    build_transforms,
    default_eval_transforms,
    default_train_transforms,
)
from litcam.errors import InputError, check_choice

OnError = Literal["raise", "skip"]
_STAGES: dict[str | None, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
_SHOWN = 20  # of the files left out, in a warning
_AT_ONCE = 4096  # records handed to the threads that check them: a million tasks would fill the memory
_HINT = " (on_error: skip leaves such files out)"


class ImageFiles(Dataset[Sample]):
    """Samples of image files, each read and augmented when it is asked for.

    A sample has boxes and instance_labels if any record of the dataset has boxes, and a mask if any has one; an image
    without a mask then has one that is void all over. Boxes are cut at the border of the picture and fall away with
    their label when nothing of them is left. In the mask, whatever its file holds, k is the k-th box of the sample;
    of a class mask all pixels of a class are those of its first box. Instances of other classes than the image's labels
    are background, without a box. A mask without boxes numbers the image's labels, from 1.

    Indices beyond the length are those of later epochs: sample ``e * len(dataset) + i`` is record i as augmented in
    epoch e. What is drawn depends on ``seed`` and the index alone, whichever worker draws it.

    Args:
        records: of the images.
        pipeline: from the file's geometry to the model's.
        size: (H, W) of the images.
        num_classes: length of multi-hot labels.
        multi_label: whether labels are multi-hot.
        replace_bad: leave out boxes that are not usable, take the next usable record in the place of one that is not,
            and warn of each once; otherwise it raises.
        seed: of the augmentations.
    """

    def __init__(
        self,
        records: Sequence[Record],
        pipeline: Pipeline,
        size: tuple[int, int],
        num_classes: int,
        multi_label: bool = False,
        replace_bad: bool = False,
        seed: int = 0,
    ) -> None:
        self.records = records if isinstance(records, Records) else Records(records)
        self.pipeline = pipeline
        self.size = size
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.replace_bad = replace_bad
        self.seed = seed
        self.has_boxes = self.records.has_boxes
        self.has_masks = self.records.has_masks
        # Shared by all workers, so that a file is named once and, where it is bad, not tried again.
        self.is_bad = torch.zeros(len(records), dtype=torch.bool).share_memory_()
        self.is_named = self.is_bad.clone().share_memory_()

    def without_annotations(self) -> "ImageFiles":
        """The same images and labels without boxes and masks, which are then not read."""
        plain = copy(self)
        plain.has_boxes = plain.has_masks = False
        return plain

    def labels_of(self, index: int) -> tuple[int, ...]:
        """The classes of an image, which is not read for it."""
        return self.records[index].labels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        if index < 0:
            raise IndexError(f"image {index} does not exist: indices start at 0")
        for step in range(len(self)):
            place = (index + step) % len(self)
            if self.is_bad[place]:
                continue
            sample = self._usable(place, index)
            if sample is not None:
                return sample
            self.is_bad[place] = True
        raise SampleError(f"None of the {len(self)} images is readable.")

    def _usable(self, place: int, index: int) -> Sample | None:
        """A sample of a record; None, with a warning, where it is not usable and others may take its place."""
        troubles: list[BadFileError] = []
        sample = None
        try:
            sample = self._load(self.records[place], index, troubles.append if self.replace_bad else refuse)
        except BadFileError as error:
            if not self.replace_bad:
                raise BadFileError(f"{error}{_HINT}") from None
            troubles.append(error)
        if troubles and not self.is_named[place]:
            self.is_named[place] = True
            for trouble in troubles:
                warnings.warn(f"left out of the training: {trouble}", stacklevel=3)
        return sample

    def _load(self, record: Record, index: int, leave_out: LeaveOut) -> Sample | None:
        image = read_image(record.path)
        size = (image.shape[1], image.shape[0])
        boxes = None
        if self.has_boxes:
            usable = fitted(record, size, leave_out)
            if usable is None:
                return None
            record = usable
            wanted = [i for i, label in enumerate(record.box_labels) if label in record.labels]
            instances = np.array(wanted, dtype=np.intp)
            boxes = np.array(record.boxes or (), dtype=np.float32).reshape(-1, 4)[wanted]
        mask = self._mask(record, size) if self.has_masks else None
        image, boxes, kept, mask = self.pipeline(image, boxes, mask, (self.seed, index), self.size)
        sample: dict[str, Any] = {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),  # [3, H, W]
            "label": self._label(record),
            "id": record.id,
        }
        if self.has_boxes:
            instances = instances[kept]
            sample["boxes"] = torch.from_numpy(boxes)
            sample["instance_labels"] = torch.tensor([record.box_labels[i] for i in instances], dtype=torch.int64)
        if mask is not None:
            numbers = _mask_numbers(record, instances.tolist() if self.has_boxes else None)
            sample["mask"] = torch.from_numpy(numbers[mask])
        return cast(Sample, sample)

    def _label(self, record: Record) -> int | torch.Tensor:
        if not self.multi_label:
            return record.labels[0]
        label = torch.zeros(self.num_classes, dtype=torch.bool)
        label[list(record.labels)] = True
        return label

    def _mask(self, record: Record, size: tuple[int, int]) -> Pixels:
        if record.mask is None:
            return np.full((size[1], size[0]), VOID, dtype=np.uint8)
        mask = read_mask(record.mask, record.mask_values, size)
        check_mask_values(record, mask)
        return mask


def _mask_numbers(record: Record, instances: list[int] | None) -> Pixels:
    """The value in the sample's mask of each value in the file's, [256].

    Args:
        record: of the image.
        instances: which of the record's boxes the sample has, in this order; None if the dataset has no boxes.
    """
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[VOID] = VOID
    if instances is None:
        if record.mask_values == "classes":
            numbers[[label + 1 for label in record.labels]] = np.arange(1, len(record.labels) + 1)
        else:
            numbers[:VOID] = np.arange(VOID)
        return numbers
    # What is left of an instance whose box the crop has cut away is void: it belongs to the class, but has no number.
    if record.mask_values == "object":
        numbers[1] = 1 if instances else VOID
    elif record.mask_values == "classes":
        numbers[[label + 1 for label in record.labels]] = VOID
        for number, instance in reversed(list(enumerate(instances, start=1))):
            numbers[record.box_labels[instance] + 1] = number
    else:
        own = [label in record.labels for label in record.box_labels]
        numbers[1 : len(own) + 1][own] = VOID
        for number, instance in enumerate(instances, start=1):
            numbers[instance + 1] = number
    return numbers


class ImageFilesDataModule(ImageDataModule):
    """Base of the data modules of image files: reading, augmentation and the handling of bad files.

    Subclasses implement :meth:`records` and ``class_names`` (and ``splits`` and ``multi_label`` where they differ),
    call :meth:`leave_out` or :meth:`note` for every file that they find unusable, and ``save_hyperparameters()``.

    Args:
        root: folder of the dataset.
        train_transforms: albumentations, each with ``class_path`` and ``init_args``; None takes random resized crop,
            horizontal flip and light colour jitter at the model's size. These look at the image alone: training batches
            then have no boxes and masks, whose files are not read.
        eval_transforms: the same for validation and test; None takes the model's own resize and crop.
        eval_resize: where ``eval_transforms`` is None: ``"crop"`` for the model's own resize and centre crop,
            ``"squash"`` for a resize to the model's size whatever the aspect, which cuts nothing off.
        on_error: ``"raise"`` ends the run at the first file or box that is not usable and names it. ``"skip"`` leaves
            out every image that is not usable, or whose annotation or mask is not, and every box that is not, with its
            image where that has no other box; it lists them once. Validation and test images are therefore all read
            before the first is used. In the training the next usable image takes the place of one that is not.
        seed: of augmentations and order.
        batch_size: images per batch and process.
        num_workers: loading processes; 0 loads in the training process.

    Raises:
        InputError: for an unknown option or transform.
    """

    splits: tuple[Split, ...] = ("train", "val", "test")
    multi_label: bool = False

    def __init__(
        self,
        root: str,
        train_transforms: list[TransformSpec] | None = None,
        eval_transforms: list[TransformSpec] | None = None,
        eval_resize: Literal["crop", "squash"] = "crop",
        on_error: OnError = "raise",
        seed: int = 0,
        batch_size: int = 64,
        num_workers: int = 4,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        check_choice("eval_resize", eval_resize, ("crop", "squash"))
        check_choice("on_error", on_error, ("raise", "skip"))
        self.root = Path(root).expanduser()
        self.train_transforms = train_transforms
        self.eval_transforms = eval_transforms
        self.eval_resize = eval_resize
        self.on_error = on_error
        self.seed = seed
        self.left_out: dict[str, type[BadFileError]] = {}  # each trouble once, in the order of finding
        self._records: dict[Split, Records] = {}
        for split in self.splits[:2]:
            self.pipeline(split)  # what is wrong with the options shows before any file is read

    @abstractmethod
    def records(self, split: Split) -> Sequence[Record]:
        """Every image of a split whose files are there; none for a split that the dataset does not have."""

    def leave_out(self, path: Path, trouble: str) -> None:
        """Note that a file is not usable, and what is wrong with it; the caller gives no record for it.

        Raises:
            BadFileError: unless ``on_error`` is ``"skip"``.
        """
        self.note(bad_file(path, trouble))

    def note(self, error: BadFileError) -> None:
        """The same as :meth:`leave_out`, for an error that a reader has raised."""
        if self.on_error == "raise":
            raise BadFileError(f"{error}{_HINT}")
        self.left_out.setdefault(str(error), type(error))

    def usable_records(self, split: Split) -> Records:
        """The records of a split, found once; where bad files are skipped, those of val and test are read once too."""
        if split not in self._records:
            before = len(self.left_out)
            records = self.records(split)
            if self.on_error == "skip" and split != "train":
                records = Records(self._checked(records))
            if not records:
                raise InputError(self._nothing(split))
            self._warn_of_left_out(before)
            self._records[split] = records if isinstance(records, Records) else Records(records)
        return self._records[split]

    def check_records(self, records: Sequence[Record]) -> Iterator[tuple[Record | None, list[BadFileError]]]:
        """Read the files of each record once: the record as far as it is usable, and what is wrong with it."""
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool:
            for start in range(0, len(records), _AT_ONCE):
                yield from pool.map(check_record, records[start : start + _AT_ONCE])

    def pipeline(self, split: Split) -> Pipeline:
        """The transforms of a split, for the data config at hand."""
        training = split == "train"
        name, specs = (
            ("train_transforms", self.train_transforms) if training else ("eval_transforms", self.eval_transforms)
        )
        if specs is not None:
            return Pipeline(build_transforms(specs, name), name)
        if training:
            return Pipeline(default_train_transforms(self.data_config), name)
        return Pipeline(default_eval_transforms(self.data_config, self.eval_resize), name)

    def setup(self, stage: str | None = None) -> None:
        """Find the images of a stage's splits, so that bad annotations show before anything is run."""
        super().setup(stage)
        for split in _STAGES.get(stage, ()):
            unused = split == "val" and getattr(self.trainer, "limit_val_batches", 1) == 0
            if split in self.splits and not unused:
                self.usable_records(split)

    def build_dataset(self, split: Split) -> ImageFiles:
        if split not in self.splits:
            raise InputError(f"{type(self).__name__} has no {split} split; it has {', '.join(self.splits)}.")
        return ImageFiles(
            self.usable_records(split),
            self.pipeline(split),
            self.image_size,
            len(self.class_names),
            self.multi_label,
            replace_bad=self.on_error == "skip" and split == "train",
            seed=self.seed,
        )

    def train_dataset(self) -> ImageFiles | Relabelled:
        """The training images, without boxes and masks unless transforms of the user's own might look at them."""
        dataset = cast(ImageFiles | Relabelled, self.dataset("train"))
        return dataset.without_annotations() if self.train_transforms is None else dataset

    def train_sampler(self, dataset: Dataset[Any]) -> StreamSampler:
        """This process's share of the images: in another order and augmented anew in every epoch."""
        rank, world = rank_and_world()
        return StreamSampler(dataset, world, rank, shuffle=True, seed=self.seed, drop_last=True)

    def _checked(self, records: Sequence[Record]) -> Iterator[Record]:
        for record, troubles in self.check_records(records):
            for trouble in troubles:
                self.note(trouble)
            if record is not None:
                yield record

    def _nothing(self, split: Split) -> str:
        sentence = f"There is no usable image for {split} in {printable(self.root)}."
        if not self.left_out:
            return sentence
        return f"{sentence} Left out: {counted(self.left_out.values())}, the first is {next(iter(self.left_out))}"

    def _warn_of_left_out(self, before: int) -> None:
        new = list(self.left_out)[before:]
        if new:
            shown = "".join(f"\n  {trouble}" for trouble in new[:_SHOWN])
            more = f"\n  and {len(new) - _SHOWN} more; --check_data lists all" if len(new) > _SHOWN else ""
            verb = "are" if len(new) > 1 else "is"
            count = counted(list(self.left_out.values())[before:])
            warnings.warn(f"{count} {verb} left out (on_error: skip):{shown}{more}", stacklevel=3)
