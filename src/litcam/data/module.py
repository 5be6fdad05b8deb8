"""What every data module shares: loaders, samplers that stay exact over processes, normalisation for the model at hand.

Knows neither datasets nor models; the model's data config reaches it through the trainer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar

import cv2
import lightning as L
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from litcam.data.batch import Batch, Collate, collate, collate_none, pack, unpack
from litcam.data.classes import Classes, ClassMap, check_training, match_classes, take_by_place
from litcam.data.relabelled import LeftOut, Relabelled
from litcam.errors import InputError, check_at_least, check_choice
from litcam.progress import say

Split = Literal["train", "val", "test"]
UnknownClasses = Literal["raise", "skip"]
Loader = TypeVar("Loader", bound=DataLoader[Any])

# What timm assumes where a model says nothing (resolve_data_config).
DEFAULT_DATA_CONFIG: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
}


class EpochSampler(DistributedSampler[Any]):
    """A process's share of a dataset in an epoch, from any place on.

    Attributes:
        start: how many of the epoch's indices the next iteration leaves out at the beginning.
    """

    start = 0

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.start, None)


class StreamSampler(EpochSampler):
    """Indices e·n … (e + 1)·n − 1 in epoch e: for datasets that go on beyond their length, so that no scene repeats."""

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self.dataset)  # type: ignore[arg-type]  # Dataset does not promise __len__
        return iter([start + index for index in super().__iter__()])


class TrainingLoader(DataLoader[Any]):
    """Batches of the training, from where the fit stands when it asks for the first of them.

    Lightning makes an iterator before it knows the epoch of a resumed fit, and workers would read ahead at once.

    Attributes:
        batches_done: tells how many batches of the epoch a fit has behind it; None where there is no fit.
    """

    batches_done: Callable[["TrainingLoader"], int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: nothing happens before the first batch
        done = self.batches_done(self) if self.batches_done is not None else 0
        if done >= len(self):
            return
        if isinstance(self.sampler, EpochSampler):  # spares the reading
            self.sampler.start = done * (self.batch_size or 1)
            yield from super().__iter__()
        else:  # of the user's own, or Lightning's for overfit_batches
            yield from islice(super().__iter__(), done, None)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: by having a state a loader tells Lightning that it can resume in the middle of an epoch."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The fit knows the place."""


class ImageDataModule(L.LightningDataModule, ABC):
    """Base of the data modules: subclasses build a dataset per split and name the classes.

    Images leave the workers as uint8 and are normalised on the device, with size, mean and std of the model's own data
    config, and labels are the indices of the model's own classes, matched by name. Evaluation loaders neither drop nor
    repeat an image, whatever the number of processes.

    Args:
        batch_size: images per batch and process.
        num_workers: loading processes; 0 loads in the training process.
    """

    def __init__(self, batch_size: int = 64, num_workers: int = 2) -> None:
        super().__init__()
        check_at_least("batch_size", batch_size)
        check_at_least("num_workers", num_workers, least=0)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.data_config = dict(DEFAULT_DATA_CONFIG)
        self.unknown_classes: UnknownClasses = "raise"
        self._model: tuple[Classes | None, int | None] | None = None  # its classes, and how many there are
        self._class_map: ClassMap | None = None
        self._told = True  # how the classes are matched: there is no model yet
        self._datasets: dict[Split, Dataset[Any]] = {}

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """The names of the data's own classes, by their index."""

    @property
    def class_ids(self) -> list[str]:
        """What tells these classes apart, by their index: the names, unless a dataset has something better."""
        return self.class_names

    @property
    def label_names(self) -> list[str]:
        """The names of the classes, by label: the model's, once :meth:`use_model` has told them, else the data's."""
        known = self._model and self._model[0]
        return list(known.names) if known else self.class_names

    @abstractmethod
    def build_dataset(self, split: Split) -> Dataset[Any]:
        """Make the dataset of a split, at ``self.image_size``."""

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images, from the data config."""
        _, height, width = self.data_config["input_size"]
        return height, width

    def setup(self, stage: str | None = None) -> None:
        """Take the data config of the trainer's model, where it has one."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        if module is not None:
            self.use_model(module)
        if stage in (None, "fit"):  # otherwise the model may have its names from a checkpoint yet to be read
            self.check_training()
            if module is not None and Classes.of(module) is None:
                self._told = True  # a model without names takes those of its training

    def use_model(self, model: object, unknown_classes: UnknownClasses | None = None) -> None:
        """Prepare images and labels for a model: its ``data_config``, and its ``class_names`` where it has them.

        Args:
            model: the module.
            unknown_classes: what to do with the classes that the model does not know: ``"raise"`` refuses a split that
                has images of them, ``"skip"`` leaves them out, see :meth:`left_out_classes`; None as before, at first
                ``"raise"``.
        """
        unknown_classes = unknown_classes or self.unknown_classes
        check_choice("unknown_classes", unknown_classes, ("raise", "skip"))
        self.use_data_config(getattr(model, "data_config", self.data_config))
        classes = Classes.of(model)
        size = getattr(model, "hparams", {}).get("num_classes", getattr(model, "num_classes", None))
        size = 2 if size == 1 else size  # by its sigmoid a single output tells two
        if classes is not None and size not in (None, len(classes.names)):
            raise InputError(f"The model has {size} classes, but knows the names of {len(classes.names)}: {classes}.")
        if ((classes, size), unknown_classes) != (self._model, self.unknown_classes):
            self._model, self.unknown_classes = (classes, size), unknown_classes
            self._class_map, self._told = None, False
            self._datasets.clear()

    def class_map(self) -> ClassMap:
        """Which of the model's classes the data's are.

        Raises:
            InputError: if two classes of the data are the same, or the model keeps no names and has another number of
                classes.
        """
        if self._class_map is None:
            own, (classes, size) = self._own_classes(), self._model or (None, None)
            self._class_map = take_by_place(own, size) if classes is None else match_classes(own, classes)
        return self._class_map

    def tell_classes(self, again: bool = False) -> None:
        """Print how the classes are matched, once unless ``again``, and unless they are plainly the same."""
        sentence = self.class_map().sentence() if again or not self._told else ""
        self._told = True
        if sentence:
            say(sentence)

    def check_training(self) -> None:
        """Raise InputError unless the model can be trained on the classes of the data: all it has, and no others."""
        check_training(self._own_classes(), *(self._model or (None, None)))

    def _own_classes(self) -> Classes:
        return Classes.named(self.class_names, self.class_ids)

    def left_out_classes(self, split: Split) -> LeftOut:
        """What of a split is left out because the model does not know its class."""
        dataset = self.dataset(split)
        return dataset.left_out if isinstance(dataset, Relabelled) else LeftOut(0, {})

    def use_data_config(self, data_config: dict[str, Any]) -> None:
        """Prepare images as ``data_config`` says (timm's keys: input_size, mean, std, interpolation)."""
        if data_config != self.data_config:
            self.data_config = dict(data_config)
            self._datasets.clear()

    def dataset(self, split: Split) -> Dataset[Any]:
        """The dataset of a split, its labels those of the model, built once."""
        if split not in self._datasets:
            dataset, classes = self.build_dataset(split), self.class_map()
            self._datasets[split] = self._relabelled(dataset, classes, split) if classes.changes else dataset
            self.tell_classes()
        return self._datasets[split]

    def _relabelled(self, dataset: Dataset[Any], classes: ClassMap, split: Split) -> Relabelled:
        relabelled = Relabelled(dataset, classes)
        found = relabelled.left_out.classes
        if found and self.unknown_classes == "raise":
            raise InputError(
                f"{classes.unknown_sentence(list(found))} (unknown_classes: skip leaves what is not known "
                "out, and counts it)."
            )
        if not len(relabelled):
            raise InputError(f"{classes.unknown_sentence(list(found))}: no image of {split} is left.")
        if found:
            counts = ", ".join(f"{name} {count}" for name, count in found.items())
            images = relabelled.left_out.images
            say(f"Left out of {split}, as the model does not know the class: {images} images ({counts}).")
        return relabelled

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches in the order of :meth:`train_sampler`; the last incomplete one is dropped."""
        dataset = self.train_dataset()
        sampler = self.train_sampler(dataset)
        loader = self._loader(dataset, sampler, len(sampler) >= self.batch_size, TrainingLoader)
        loader.batches_done = self._batches_done
        return loader

    def train_dataset(self) -> Dataset[Any]:
        """What the training reads: the dataset of the split, or as much of its samples as a training needs."""
        return self.dataset("train")

    def train_sampler(self, dataset: Dataset[Any]) -> EpochSampler:
        """This process's share of the training images: in another order in every epoch."""
        rank, world = rank_and_world()
        return EpochSampler(dataset, world, rank, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Every validation image once, in order."""
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Every test image once, in order."""
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: Split, indices: Sequence[int] | None = None) -> DataLoader[Any]:
        """Every image of a split, or some of them, once, in order, over all processes.

        A process that there is no image for gets one batch of none: it has to take part in what all add up.
        """
        dataset = self.dataset(split)
        if indices is not None:
            dataset = Subset(dataset, indices)
        rank, world = rank_and_world()
        if 0 < len(dataset) <= rank:  # type: ignore[arg-type]  # Dataset does not promise __len__
            return DataLoader(dataset, sampler=[0], collate_fn=self._collate(collate_none))
        # Lightning's own sampler would pad to equal shares, and count some images twice.
        sampler = UnrepeatedDistributedSampler(dataset, num_replicas=world, rank=rank, shuffle=False)
        return self._loader(dataset, sampler, drop_last=False, kind=DataLoader)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise the images on the device, and give them the dtype of the trainer's precision."""
        normalized = self.normalize(batch)
        return Batch(**{**normalized, "image": self._as_input(normalized["image"])})

    def _as_input(self, tensor: Tensor) -> Tensor:
        """What the trainer makes of a batch's floats; it does so before there is a normalised image."""
        plugin = getattr(self.trainer, "precision_plugin", None)
        converted: Tensor = tensor if plugin is None else plugin.convert_input(tensor)
        return converted

    def normalize(self, batch: Batch) -> Batch:
        """The batch with its uint8 images scaled to [0, 1] and normalised by the data config's mean and std."""
        batch = unpack(batch)
        if batch["image"].dtype != torch.uint8:
            return batch
        mean, std = (self._per_channel(key, batch["image"]) for key in ("mean", "std"))
        normalized = batch["image"].to(torch.float32).div_(255).sub_(mean).div_(std)
        return Batch(**{**batch, "image": normalized})

    def _per_channel(self, key: str, like: Tensor) -> Tensor:
        return torch.tensor(self.data_config[key], dtype=torch.float32, device=like.device).view(-1, 1, 1)

    def _batches_done(self, loader: TrainingLoader) -> int:
        """How many batches of its epoch the fit has taken from this loader; 0 where it is not the fit's."""
        trainer = self.trainer
        if trainer is None or not trainer.training or trainer.train_dataloader is not loader:
            return 0
        done: int = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return done if done < trainer.num_training_batches else len(loader)

    def _collate(self, collate: Collate) -> Collate:
        """How samples become batches: packed where the trainer would round all floats of a batch."""
        rounds = self._as_input(torch.zeros(1)).element_size() < torch.float32.itemsize
        return partial(pack, collate) if rounds else collate

    def _loader(
        self, dataset: Dataset[Any], sampler: DistributedSampler[Any], drop_last: bool, kind: type[Loader]
    ) -> Loader:
        return kind(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self._collate(collate),
            worker_init_fn=_prepare_worker,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )


def _prepare_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # OpenCV would start one per core in each worker, for images this small in vain


def rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
