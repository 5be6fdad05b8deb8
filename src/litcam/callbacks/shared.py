"""SharedExplanations: one recorded forward and one explanation per image and method, whichever callbacks ask for it.

Stands between Lightning's hooks and the explainers; holds no maths.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from weakref import WeakKeyDictionary

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DistributedSampler

from litcam.attention import AttentionRecorder, AttentionTrace, ViT, evaluating, find_vit, record
from litcam.data.batch import Batch
from litcam.errors import InputError
from litcam.explainers import Explainer, Explanation, create_explainer

Target = Literal["true", "predicted"]


@dataclass(frozen=True)
class Request:
    """What a callback wants explained, and how. Callbacks with equal requests share their explanations."""

    explainer: str
    options: tuple[tuple[str, Any], ...]
    target: Target


@dataclass(frozen=True)
class Explained:
    """The explained images of one validation batch, n of its B images.

    Attributes:
        batch: the whole batch, on the device.
        rows: which of its images, [n].
        indices: where those stand in the dataset's order, [n].
        labels: their true classes, [n].
        explanation: of these n images.
        trace: the forward of these n images.
    """

    batch: Batch
    rows: Tensor
    indices: Tensor
    labels: Tensor
    explanation: Explanation
    trace: AttentionTrace

    @cached_property
    def heatmaps(self) -> Tensor:
        """The maps at the size of the images, each in [0, 1]: [n, H, W]."""
        height, width = self.trace.images.shape[-2:]
        return self.explanation.upsample((height, width))

    @property
    def correct(self) -> Tensor:
        """Which predictions are right: bool [n]."""
        return self.explanation.logits.argmax(1) == self.labels

    def choose(self, chosen: Tensor) -> "Explained":
        """Some of these images: ``chosen`` is bool [n]."""
        if bool(chosen.all()):
            return self
        where = chosen.nonzero()[:, 0]
        explanation = Explanation(
            self.explanation.heatmaps[where], self.explanation.logits[where], self.explanation.targets[where]
        )
        fewer = Explained(
            self.batch, self.rows[where], self.indices[where], self.labels[where], explanation, self.trace.select(where)
        )
        fewer.__dict__["heatmaps"] = self.heatmaps[where]  # spares the upsampling
        return fewer


@dataclass
class _Subset:
    """Which images of the dataset a callback wants: all, or a fixed random number of them."""

    num_images: int | None
    seed: int
    _chosen: dict[int, Tensor] = field(default_factory=dict)

    def contains(self, indices: Tensor, total: int) -> Tensor:
        """Bool like ``indices``, places in a dataset of ``total`` images."""
        if self.num_images is None or self.num_images >= total:
            return torch.ones_like(indices, dtype=torch.bool)
        if total not in self._chosen:
            generator = torch.Generator().manual_seed(self.seed)
            self._chosen[total] = torch.randperm(total, generator=generator)[: self.num_images]
        return torch.isin(indices, self._chosen[total])


class SharedExplanations:
    """Records validation_step's own forward and explains each wanted image once per request."""

    def __init__(self) -> None:
        self.subsets: dict[object, tuple[Request, _Subset]] = {}
        self._explainers: dict[Request, Explainer] = {}
        self._module: L.LightningModule | None = None
        self._recorder: AttentionRecorder | None = None
        self._batch: Any = None
        self._trace: AttentionTrace | None = None
        self._results: dict[Request, tuple[Tensor, Explained]] = {}
        self._seen = 0

    def join(self, member: object, request: Request, num_images: int | None, seed: int) -> None:
        """Announce what a callback will ask for."""
        self.subsets[member] = (request, _Subset(num_images, seed))

    def start_epoch(self) -> None:
        """Count images from the beginning of the dataset again."""
        self._seen = 0

    def start_batch(self, module: L.LightningModule) -> None:
        """Record the forward that is about to run; the first of several calls counts."""
        if self._recorder is not None:
            return
        self._prepare(module)
        self._batch, self._trace, self._results = None, None, {}
        self._recorder = AttentionRecorder(self._vit, self._readers)
        if not _is_compiled(module):  # a compiled forward shows no attention calls
            self._recorder.__enter__()

    def stop(self) -> None:
        """Leave the model as it was; to be called on every path."""
        if self._recorder is not None:
            self._recorder.__exit__(None, None, None)
            self._recorder = None

    def explain(self, member: object, trainer: L.Trainer, batch: Any) -> Explained | None:
        """The images of the batch that ``member`` wants, explained; None if it wants none of them."""
        if self._batch is not batch:
            self._end_batch(trainer, batch)
        request, subset = self.subsets[member]
        if request not in self._results:
            members = [wish for other, wish in self.subsets.values() if other == request]
            wanted = torch.stack([wish.contains(self._indices, self._total) for wish in members]).any(0)
            self._results[request] = (wanted, self._explain(request, (wanted & self._real).nonzero()[:, 0]))
        _, explained = self._results[request]
        mine = subset.contains(explained.indices, self._total).to(explained.labels.device)
        return explained.choose(mine) if bool(mine.any()) else None

    def _prepare(self, module: L.LightningModule) -> None:
        """Build the explainers for a module, once."""
        if self._module is module and {request for request, _ in self.subsets.values()} == set(self._explainers):
            return
        self._module = module
        vit = find_vit(module)
        # A module without a forward of its own works through the net alone.
        self._vit = vit if is_overridden("forward", module, L.LightningModule) else ViT(vit.net, vit.net)
        self._explainers = {
            request: create_explainer(request.explainer, self._vit.root, **dict(request.options))
            for request in dict.fromkeys(request for request, _ in self.subsets.values())
        }

    @property
    def _readers(self) -> Mapping[Any, Any]:
        return {explainer: explainer.read for explainer in self._explainers.values()}

    def _end_batch(self, trainer: L.Trainer, batch: Any) -> None:
        """Take the recorded forward, or make one where the step made none that fits."""
        trace = self._recorder.trace if self._recorder is not None else None
        self.stop()
        self._batch, self._results = batch, {}
        images = read_batch(batch)["image"]
        if trace is None or not self._fits(trace, images):
            with evaluating(self._vit.root):
                trace = record(self._vit, images, self._readers)
        self._trace = trace
        places = self._seen + torch.arange(len(images))
        self._seen += len(images)
        self._indices, self._real, self._total = _dataset_places(trainer, places)

    def _fits(self, trace: AttentionTrace, images: Tensor) -> bool:
        """Whether a trace is of these very images and ends in class logits."""
        classifies = trace.module is self._vit.root or getattr(self._vit.net, "num_classes", 0) > 0
        return classifies and trace.images.shape == images.shape and torch.equal(trace.images, images.to(trace.images))

    def _explain(self, request: Request, rows: Tensor) -> Explained:
        assert self._trace is not None  # _end_batch came first
        batch = read_batch(self._batch)
        rows_there = rows.to(batch["label"].device)
        labels, trace = batch["label"][rows_there], self._trace.select(rows)
        targets = labels if request.target == "true" else None
        explanation = self._explainers[request].explain(trace, targets)
        return Explained(batch, rows_there, self._indices[rows], labels, explanation, trace)


_shared: WeakKeyDictionary[L.Trainer, SharedExplanations] = WeakKeyDictionary()


def shared_explanations(trainer: L.Trainer) -> SharedExplanations:
    """The explanations that all callbacks of a trainer share."""
    return _shared.setdefault(trainer, SharedExplanations())


def read_batch(batch: Any) -> Batch:
    """A batch as the house's contract has it; a pair of images and labels is taken too.

    Raises:
        InputError: if the batch has neither form, or labels are not class indices [B].
    """
    if isinstance(batch, list | tuple) and len(batch) >= 2:
        batch = {"image": batch[0], "label": batch[1]}
    if not isinstance(batch, Mapping) or not {"image", "label"} <= set(batch):
        raise InputError(
            f"The validation batch is a {type(batch).__name__}; the callbacks need a dict with 'image' and 'label', "
            "or a pair (images, labels)."
        )
    labels = batch["label"]
    if labels.ndim != 1 or labels.is_floating_point():
        raise InputError(f"label has to be class indices [B], not {labels.dtype} {list(labels.shape)}.")
    return batch  # type: ignore[return-value]  # other keys are checked by those who need them


def _dataset_places(trainer: L.Trainer, places: Tensor) -> tuple[Tensor, Tensor, int]:
    """Where this process's images stand in the dataset's order, which of them are no padding, and the dataset's length.

    A DistributedSampler gives process r of W the images r, r + W, …, and repeats the first ones to fill up the shares.
    """
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
    sampler = getattr(loader, "sampler", None)
    try:
        total = len(loader.dataset)  # type: ignore[union-attr]
    except (TypeError, AttributeError):  # an iterable dataset
        total = int(places[-1]) + 1
    world, rank = trainer.world_size, trainer.global_rank
    if isinstance(sampler, DistributedSampler):
        world, rank = sampler.num_replicas, sampler.rank
    indices = places * world + rank
    batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
    if trainer.sanity_checking:
        batches = trainer.num_sanity_val_batches
    batch_size = getattr(loader, "batch_size", None)
    if batch_size and batches and isinstance(batches[0], int):
        total = min(total, batches[0] * batch_size * world)  # limit_val_batches shortens the dataset
    return indices, indices < total, total


def _is_compiled(module: L.LightningModule) -> bool:
    """Whether torch.compile has been at work on the module or in it."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    return any(
        getattr(child, "_compiled_call_impl", None) is not None or hasattr(child, "_orig_mod")
        for child in module.modules()
    )
