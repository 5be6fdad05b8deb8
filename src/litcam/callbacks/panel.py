"""A pass over the images that a monitor watches, outside of any validation. Leaves the run as it was."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.shared import SharedExplanations, dataset_places, shared_explanations
from litcam.vit.context import evaluating


def consume_panel(monitor: ExplanationMonitor, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
    """Explain this process's share of a monitor's images outside of a validation.

    By the net alone, for a validation_step may count its calls, log and update metrics: whoever asks for this has to
    see in a validation that the step gives its images to the model as they are. Draws no random number.
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
            with trainer.precision_plugin.val_step_context():
                shared.run_net(pl_module, batch)
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
