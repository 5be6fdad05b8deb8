"""SharedExplanations: one recorded forward and one explanation per image and method, whichever callbacks ask for it.

Stands between Lightning's hooks and the explainers; holds no maths.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DistributedSampler

from litcam.data.batch import Batch, Regions, labelled_pairs, missing_annotation, read_batch, true_regions
from litcam.errors import InputError, UnsupportedModelError
from litcam.explainers import Explainer, Explanation, create_explainer
from litcam.logits import check_classifies
from litcam.metrics.functional.perturbation import is_predicted
from litcam.vit.context import eager, evaluating
from litcam.vit.model import find_vit
from litcam.vit.place import lies_on
from litcam.vit.recorder import AttentionRecorder, record
from litcam.vit.tail import agree
from litcam.vit.trace import AttentionTrace

Target = Literal["true", "predicted"]
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Request:
    """What a callback wants explained, and how. Callbacks with equal requests share their explanations."""

    explainer: str
    options: Mapping[str, Any] = field(hash=False)  # may hold lists
    target: Target


@dataclass(frozen=True)
class Explained:
    """The explained images of one validation batch, n of its B images; of several labels each counts by itself.

    Attributes:
        batch: the whole batch, on the device.
        rows: which of its images, [n].
        indices: where those stand in the dataset's order, [n]; on the CPU.
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
    def as_loaded(self) -> bool:
        """Whether the model saw the images as they are in the batch: a step may change them first."""
        images = self.batch["image"][self.rows]
        return torch.equal(self.trace.images, images.to(self.trace.images))

    @property
    def multi_label(self) -> bool:
        """Whether images may have several classes."""
        return self.batch["label"].ndim == 2

    @property
    def correct(self) -> Tensor:
        """Which predictions are right, in multi-label data which classes are found: bool [n]."""
        return is_predicted(self.explanation.logits, self.labels, self.multi_label) == 1

    @property
    def ids(self) -> list[str]:
        """The names of the images, or where those have none their places in the dataset: [n]."""
        ids: Any = self.batch.get("id")
        if ids is None:
            return [str(place) for place in self.indices.tolist()]
        ids = ids.tolist() if isinstance(ids, Tensor) else ids
        return [str(ids[row]) for row in self.rows.tolist()]

    def regions(self, kind: Regions, who: str, otherwise: str = "leave this callback out") -> Tensor:
        """Where their objects are, bool [n, H, W]; found once for all that ask.

        Args:
            kind: ``"boxes"`` or ``"masks"``.
            who: asks, with a verb, for the error.
            otherwise: what else can be done where there are none.

        Raises:
            InputError: if the batch has no such annotation.
        """
        if kind not in self._regions:
            found = true_regions(self.batch, self.rows, self.labels, kind)
            if found is None:
                raise missing_annotation(who, kind, otherwise)
            self._regions[kind] = found
        return self._regions[kind]

    @cached_property
    def _regions(self) -> dict[Regions, Tensor]:
        return {}

    def choose(self, chosen: Tensor) -> "Explained":
        """Some of these images: ``chosen`` is bool [n]."""
        if bool(chosen.all()):
            return self
        where = chosen.nonzero()[:, 0]
        explanation = Explanation(
            self.explanation.heatmaps[where], self.explanation.logits[where], self.explanation.targets[where]
        )
        indices = self.indices[where.cpu()]
        fewer = Explained(
            self.batch, self.rows[where], indices, self.labels[where], explanation, self.trace.select(where)
        )
        fewer.__dict__["heatmaps"] = self.heatmaps[where]  # spares the upsampling
        return fewer


@dataclass
class _Subset:
    """Which images of the dataset a callback wants: all, or a fixed random number of them.

    Of a dataset without a length the number is that of its first images.
    """

    num_images: int | None
    seed: int
    _chosen: dict[int, Tensor] = field(default_factory=dict)

    def contains(self, indices: Tensor, total: int | None) -> Tensor:
        """Bool like ``indices``, places in a dataset of ``total`` images (None: nobody knows)."""
        if self.num_images is None:
            return torch.ones_like(indices, dtype=torch.bool)
        if total is None or self.num_images >= total:
            return indices < self.num_images
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
        self._results: dict[Request, Explained | None] = {}
        self._seen = 0
        self._net_is_whole: bool | None = None  # whether the net gives the module's logits; None: not yet compared

    def join(self, member: object, request: Request, num_images: int | None, seed: int) -> None:
        """Announce what a callback will ask for."""
        self.subsets[member] = (request, _Subset(num_images, seed))

    def start_epoch(self) -> None:
        """Count images from the beginning of the dataset again."""
        self._seen = 0

    def end_epoch(self) -> None:
        """Let go of the last batch."""
        self.stop()
        self._batch, self._trace, self._results = None, None, {}

    def start_batch(self, module: L.LightningModule) -> None:
        """Record the forward that is about to run; the first of several calls counts."""
        if self._recorder is not None:
            return
        self._prepare(module)
        self._batch, self._trace, self._results = None, None, {}
        self._recorder = AttentionRecorder(self._vit, self._readers)
        if not is_compiled(module):  # a compiled forward shows no attention calls
            self._recorder.__enter__()

    def run_net(self, module: L.LightningModule, batch: Any) -> None:
        """Let the net see a batch where no step does; a compiled one is left to :meth:`explain`, as in an epoch."""
        if not is_compiled(module):
            self._vit.net(read_batch(batch, multi_label=True)["image"])

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
            wanted = torch.stack([wish.contains(self._indices, self._total) for wish in members]).any(0) & self._real
            self._results[request] = self._explain(request, wanted.nonzero()[:, 0]) if bool(wanted.any()) else None
        explained = self._results[request]
        if explained is None:
            return None
        mine = subset.contains(explained.indices, self._total).to(explained.labels.device)
        return explained.choose(mine) if bool(mine.any()) else None

    def _prepare(self, module: L.LightningModule) -> None:
        """Build the explainers for a module, once."""
        if self._module is module and {request for request, _ in self.subsets.values()} == set(self._explainers):
            return
        check_classifies(module, "What the callbacks show")
        vit = find_vit(module)
        # A module without a forward of its own works through the net alone.
        self._vit = vit if is_overridden("forward", module, L.LightningModule) else replace(vit, root=vit.net)
        if self._vit.root is vit.net and getattr(vit.net, "num_classes", None) == 0:
            raise UnsupportedModelError(
                f"{type(module).__name__} has no forward, and its {type(vit.net).__name__} has no head: "
                "give the module a forward that returns logits."
            )
        self._net_is_whole = None
        self._explainers = {
            request: create_explainer(request.explainer, self._vit.root, **request.options)
            for request in dict.fromkeys(request for request, _ in self.subsets.values())
        }
        self._module = module

    @property
    def _readers(self) -> Mapping[Any, Any]:
        return {key: read for explainer in self._explainers.values() for key, read in explainer.readers.items()}

    def _end_batch(self, trainer: L.Trainer, batch: Any) -> None:
        """Take the recorded forward, or make one where the step made none that fits."""
        trace, forwards = (self._recorder.trace, self._recorder.forwards) if self._recorder is not None else (None, 0)
        self.stop()
        self._batch, self._results = batch, {}
        images = read_batch(batch, multi_label=True)["image"]
        if trace is None or not self._is_of(trace, forwards, images) or not self._classifies(trace):
            trace = record(self._vit, images, self._readers)
        self._trace = trace
        places = self._seen + torch.arange(len(images))
        self._seen += len(images)
        self._indices, self._real, self._total = dataset_places(trainer, places)

    def _is_of(self, trace: AttentionTrace, forwards: int, images: Tensor) -> bool:
        """Whether a trace, the last of several forwards, is of these images, where they lie in the batch."""
        if forwards == 1:  # the step may have normalised or resized them first
            return lies_on(trace.images, images)
        return trace.images.shape == images.shape and torch.equal(trace.images, images.to(trace.images))

    def _classifies(self, trace: AttentionTrace) -> bool:
        """Whether a trace ends in the module's logits; a step may leave the forward aside, and have a head besides."""
        if trace.module is self._vit.root:
            return True
        if self._net_is_whole is None:
            try:
                with evaluating(self._vit.root), torch.no_grad(), eager():
                    logits = self._vit.root(trace.images[:1])
            except Exception:  # a forward that takes a batch, say: then the net is all that images can be given
                logits = trace.logits[:1]
            self._net_is_whole = isinstance(logits, Tensor) and agree(logits, trace.logits[:1])
        return self._net_is_whole

    def _explain(self, request: Request, rows: Tensor) -> Explained | None:
        assert self._trace is not None  # _end_batch came first
        batch = read_batch(self._batch, multi_label=True)
        if batch["label"].ndim == 2 and request.target == "predicted":
            raise InputError("target is 'predicted', but the images have several labels each; choose true.")
        images, labels = labelled_pairs(batch)  # each class of an image is explained by itself
        wanted = torch.isin(images, rows.to(images.device))
        images, labels = images[wanted], labels[wanted]
        if len(images) == 0:
            return None
        trace = self._trace.select(images)
        explanation = self._explainers[request].explain(trace, labels if request.target == "true" else None)
        return Explained(batch, images, self._indices[images.cpu()], labels, explanation, trace)


_shared: WeakKeyDictionary[L.Trainer, SharedExplanations] = WeakKeyDictionary()


def shared_explanations(trainer: L.Trainer) -> SharedExplanations:
    """The explanations that all callbacks of a trainer share."""
    return _shared.setdefault(trainer, SharedExplanations())


def dataset_places(trainer: L.Trainer, places: Tensor) -> tuple[Tensor, Tensor, int | None]:
    """Where this process's images stand in the dataset's order, which of them are no padding, and the dataset's length.

    A DistributedSampler gives process r of W the images r, r + W, …, and repeats the first ones to fill up the shares.
    """
    loader: Any = CombinedLoader(trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders).flattened[0]
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", getattr(loader, "sampler", None))
    if isinstance(sampler, DistributedSampler):
        world, rank, total = sampler.num_replicas, sampler.rank, len(sampler.dataset)  # type: ignore[arg-type]
        indices = places * world + rank
        return indices, indices < total, _within_limit(trainer, loader, total, world)
    world, rank = trainer.world_size, trainer.global_rank
    try:
        length: int | None = len(sampler) * world  # type: ignore[arg-type]  # each process has its own images
    except TypeError:  # an iterable dataset, or a loader of the user's own
        length = None
    indices = places * world + rank
    return indices, torch.ones_like(places, dtype=torch.bool), _within_limit(trainer, loader, length, world)


def _within_limit(trainer: L.Trainer, loader: Any, total: int | None, world: int) -> int | None:
    """What limit_val_batches (limit_test_batches, the sanity check) leaves of a dataset; in every process the same."""
    batch_size: int | None = getattr(loader, "batch_size", None)
    if total is None or not batch_size:
        return total
    share = -(-total // world)  # of the first process; others may have one image less, and so one batch less
    batches = share // batch_size if loader.drop_last else -(-share // batch_size)
    limit = trainer.limit_test_batches if trainer.testing else trainer.limit_val_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    if trainer.sanity_checking:
        batches = int(min(batches, trainer.num_sanity_val_steps))
    return min(total, batches * batch_size * world)


def is_compiled(module: L.LightningModule) -> bool:
    """Whether torch.compile has been at work on the module or in it."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return True
    return any(
        getattr(child, "_compiled_call_impl", None) is not None
        or hasattr(child, "_orig_mod")
        or hasattr(child.forward, "_torchdynamo_orig_callable")  # torch.compile(net.forward)
        for child in module.modules()
    )


def gather(entries: dict[Key, Value]) -> dict[Key, Value]:
    """The entries of all processes; a collective."""
    return {key: entry for part in of_all_processes(entries) for key, entry in part.items()}


def of_all_processes(value: Value) -> list[Value]:
    """This value of every process, by rank; a collective. Its tensors have to be on the CPU if there are several."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, value)
    return gathered


def common_batches(trainer: L.Trainer) -> float:
    """How many batches of the first dataloader every process is sure to have; of a single process all. A collective."""
    if trainer.testing:
        batches = trainer.num_test_batches
    else:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
    counts = of_all_processes(batches[0])
    if len(counts) == 1:
        return math.inf
    return min(counts) if all(math.isfinite(count) for count in counts) else 0  # of an endless one nobody is sure
