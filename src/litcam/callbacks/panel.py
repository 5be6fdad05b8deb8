"""A pass over the images that a monitor watches, outside of any validation. Leaves the run as it was."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.shared import SharedExplanations, dataset_places, is_compiled, shared_explanations
from litcam.vit.context import evaluating
from litcam.vit.model import find_vit


def consume_panel(monitor: ExplanationMonitor, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Explain this process's share of a monitor's images outside of a validation.

    The forward is that of the module's own validation_step, which is left as soon as the forward is through, so that
    nothing is logged and no metric updated. Draws no random number.
    """
    if not trainer.enable_validation:
        return
    shared, stage = SharedExplanations(), trainer.state.stage
    shared.join(monitor, monitor.request, None, monitor.seed)
    trainer.validating = True
    with ExitStack() as stack:
        stack.callback(setattr, trainer.state, "stage", stage)
        stack.callback(shared.end_epoch)
        stack.enter_context(isolate_rng())
        stack.enter_context(evaluating(pl_module))
        stack.enter_context(torch.no_grad())
        trainer.fit_loop.epoch_loop.val_loop.setup_data()  # does nothing where it has been done
        for batch, indices, wanted in _panel_batches(monitor, trainer):
            batch = trainer.precision_plugin.convert_input(batch)
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            shared.start_batch(pl_module)
            if not is_compiled(pl_module):  # whose forward is not seen in an epoch either
                with trainer.precision_plugin.val_step_context(), _left_after_forward(pl_module):
                    step: Callable[..., Any] = pl_module.validation_step
                    step(*(batch, 0, 0)[: len(inspect.signature(step).parameters)])
            explained = shared.explain(monitor, trainer, batch)
            if explained is not None and bool(wanted[explained.rows.cpu()].any()):
                rows = explained.rows.cpu()
                placed = replace(explained, indices=indices[rows])
                monitor.consume(placed.choose(wanted[rows].to(explained.rows.device)))


def _panel_batches(monitor: ExplanationMonitor, trainer: L.Trainer) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """Batches with the places of their images in the dataset and which of these are of the panel, both [B].

    Where the loader's dataset can be indexed, only the panel is read; else the whole of it.
    """
    loader: Any = CombinedLoader(trainer.val_dataloaders).flattened[0]
    batches = trainer.num_val_batches[0]
    limit = None if batches == float("inf") else int(batches)
    _, subset = shared_explanations(trainer).subsets[monitor]
    seen = 0

    def find(count: int) -> tuple[Tensor, Tensor]:
        nonlocal seen
        indices, real, total = dataset_places(trainer, seen + torch.arange(count))
        seen += count
        return indices, subset.contains(indices, total) & real

    sampler = getattr(loader, "batch_sampler", None)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or sampler is None:
        for batch in islice(loader, limit):
            indices, wanted = find(_batch_size(batch))
            yield batch, indices, wanted
        return
    samples: list[Any] = []
    places: list[Tensor] = []
    size = 1
    for chosen in islice(sampler, limit):
        indices, wanted = find(len(chosen))
        size = max(size, len(chosen))
        samples += [sample for sample, kept in zip(chosen, wanted.tolist(), strict=True) if kept]
        places.append(indices[wanted])
    if not samples:
        return
    panel: DataLoader[Any] = DataLoader(
        loader.dataset,
        batch_sampler=[samples[start : start + size] for start in range(0, len(samples), size)],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
    for batch, indices in zip(panel, torch.cat(places).split(size), strict=True):
        yield batch, indices, torch.ones_like(indices, dtype=torch.bool)


def _batch_size(batch: Any) -> int:
    """How many images a batch holds, in either form; of another form none, which is refused where it is explained."""
    images = batch.get("image") if isinstance(batch, Mapping) else batch[0] if isinstance(batch, list | tuple) else None
    return len(images) if isinstance(images, Tensor) else 0


class _ForwardDone(Exception):
    """Leaves a step."""


@contextmanager
def _left_after_forward(module: nn.Module) -> Iterator[None]:
    """Leave what is inside as soon as the module's forward, or its net's where that is called alone, has ended."""
    net = find_vit(module).net
    running = False

    def enter(*_: Any) -> None:
        nonlocal running
        running = True

    def leave_net(*_: Any) -> None:
        if not running:
            raise _ForwardDone

    def leave(*_: Any) -> None:
        raise _ForwardDone

    with ExitStack() as hooks, suppress(_ForwardDone):
        hooks.callback(module.register_forward_pre_hook(enter).remove)
        hooks.callback(net.register_forward_hook(leave_net).remove)
        hooks.callback(module.register_forward_hook(leave).remove)
        yield
