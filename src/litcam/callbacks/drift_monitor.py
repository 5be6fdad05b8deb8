"""DriftMonitor: how the maps of the same images move while a model learns. As scalars, a filmstrip and files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from litcam.callbacks.drift_figures import Filmstrip, draw_drift, moving_most, thumbnail
from litcam.callbacks.drift_history import NOT_FOUND, Drift, Key, PanelMaps, compare, drifts_of, references_of
from litcam.callbacks.initial_validation import epochs_trained, is_rehearsal
from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.panel import consume_panel
from litcam.callbacks.pictures import Pictures
from litcam.callbacks.reporting import log_image, log_scalars, run_folder, save_png
from litcam.callbacks.shared import Explained, gather, of_all_processes
from litcam.errors import InputError, check_choice
from litcam.explainers import Explainer, Explanation, create_explainer
from litcam.heatmaps import on_grid
from litcam.logits import predicted_classes
from litcam.metrics.functional.similarity import SIMILARITIES

Pixels = NDArray[np.uint8]


@dataclass
class _Entry:
    """What is kept of one image and class."""

    id: str
    prediction: int
    map: NDArray[np.float16]
    mirrored: NDArray[np.float16] | None


@dataclass(frozen=True)
class _Saved:
    """What a checkpoint says of the history."""

    folder: str | None
    epochs: Sequence[int]
    unproved: bool


class DriftMonitor(ExplanationMonitor):
    """Logs how the maps of a fixed panel of validation images, each of its true class, move during training.

    Every epoch's maps are compared with those of the previous epoch, of epoch 0 (before any training, made when the
    fit starts) and of the best epoch so far by a monitored value: ``val/<explainer>/drift/<similarity>_<reference>``,
    and ``…_unchanged``, the same over the images whose prediction is that of the reference.
    ``<similarity>_floor`` compares the maps with those of the same weights on the mirrored images, mirrored back: a
    drift no larger than that says nothing. Beside these: ``unchanged_<reference>`` (share of the images), ``gini`` of
    the maps (mean) and ``degenerate`` (maps that say nothing, left out of the means).

    The images ``val/<explainer>/drift`` and ``…/drift_curves`` are a filmstrip of the images that drift most, one
    column per epoch, and all similarities over the epochs. They also lie in ``<run folder>/drift/<explainer>``, with
    the maps themselves: ``epoch_000.npz``, … (see :class:`PanelMaps` and :func:`read_history`). A file's number is that
    of the epochs trained; of several validations in an epoch the last one stays. A resumed fit continues the history;
    files of other epochs, or of another run, are removed from its folder. Works in a fit alone, not in ``validate``.

    Epoch 0 costs no validation_step: the net alone is given the images as they are loaded. Where a step changes them
    first there is no epoch 0, which is said, unless :class:`~litcam.callbacks.InitialValidation` makes one.

    Args:
        explainer: name of the explanation method.
        explainer_options: its options.
        num_images: size of the panel, a fixed random subset; None takes every image.
        similarities: which are logged as scalars, of spearman (rank correlation), centred_pearson (after subtraction of
            the panel's mean map), top_iou (of the top 10 % of the tokens), jensen_shannon (divergence in bits) and
            centroid_shift (in shares of the side). The curves show all.
        monitor: the value by which an epoch is the best; None for no such reference.
        mode: whether a lower or a higher value is better: ``"min"`` or ``"max"``.
        floor: compare with mirrored images too, for one more forward of the panel per epoch.
        rows: images of the filmstrip.
        columns: its epochs at most: the first, the last and others evenly between.
        colormap: name of a matplotlib colour map.
        seed: of the panel.

    Raises:
        InputError: for an option out of its range, if the monitored value is not logged, and if the images of the
            panel change between epochs.
    """

    def __init__(
        self,
        explainer: str = "agcam",
        explainer_options: dict[str, Any] | None = None,
        num_images: int | None = 256,
        similarities: Sequence[str] = ("spearman",),
        monitor: str | None = "val/accuracy",
        mode: Literal["min", "max"] = "max",
        floor: bool = True,
        rows: int = 8,
        columns: int = 12,
        colormap: str = "turbo",
        seed: int = 0,
    ) -> None:
        super().__init__(explainer, explainer_options, "true", num_images, seed)
        for name in similarities:
            check_choice("similarities", name, SIMILARITIES)
        check_choice("mode", mode, ("min", "max"))
        self.similarities = tuple(similarities)
        self.monitor = monitor
        self.mode: Literal["min", "max"] | None = mode if monitor is not None else None
        self.floor = floor
        self.style = Filmstrip(rows, columns, colormap)
        self.history: list[PanelMaps] = []
        self.drifts: list[Drift] = []
        self.folder: Path | None = None
        self._saved: _Saved | None = None
        self._unproved = False  # whether epoch 0 was seen by the net alone, and no validation has been since
        self._changed = False  # whether a validation_step has changed its images
        self._thumbnails: dict[Key, Pixels] = {}  # of the images that this process has seen

    @property
    def state_key(self) -> str:
        return self._generate_state_key(explainer=self.explainer)

    @property
    def _panel(self) -> dict[str, Any]:
        """What has to stay as it is for a history to go on."""
        return {"num_images": self.num_images, "seed": self.seed, "explainer_options": dict(self.request.options)}

    def state_dict(self) -> dict[str, Any]:
        folder = str(self.folder.resolve()) if self.folder is not None else None
        epochs = [maps.epoch for maps in self.history]
        return {**self._panel, "folder": folder, "epochs": epochs, "unproved": self._unproved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in self._panel.items():
            if state_dict[name] != value:
                raise InputError(
                    f"DriftMonitor has {name} {value!r}, but the checkpoint's history has {state_dict[name]!r}: "
                    "resume with the same, or leave the callback out."
                )
        self._saved = _Saved(state_dict["folder"], state_dict["epochs"], state_dict["unproved"])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 0:
            self.history, self._unproved, self._changed = [], False, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = run_folder(trainer)
        self.folder = folder / "drift" / self.explainer if folder is not None else None
        if self._saved is not None:
            self.history = trainer.strategy.broadcast(self._read(trainer, self._saved))
            self._unproved = self._saved.unproved and bool(self.history)
        self._saved = None
        self.drifts = drifts_of(self.history, self.mode)
        if trainer.is_global_zero and self.folder is not None:
            kept = {maps.write(self.folder) for maps in self.history}
            for file in set(self.folder.glob("epoch_*.npz")) - kept:
                file.unlink()
        trainer.strategy.barrier("drift")
        if not self.history and not self._tell_of_changes():
            self.start(trainer, pl_module)
            consume_panel(self, trainer, pl_module)
            self._take_in(trainer.current_epoch)
            self._write(trainer)
            self._unproved = bool(self.history)

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.entries: dict[Key, _Entry] = {}
        self.idle = is_rehearsal(trainer) or trainer.state.fn != TrainerFn.FITTING
        self.pictures = Pictures(trainer)
        self._precision = trainer.precision_plugin
        self._method: Explainer | None = None

    def consume(self, explained: Explained) -> None:
        self._changed |= not explained.as_loaded
        if self.idle:
            return
        maps = _halves(explained.explanation, explained.trace.grid)
        mirrored = _halves(self._explain_mirrored(explained), explained.trace.grid) if self.floor else None
        predicted = predicted_classes(explained.explanation.logits, regression=False)
        if explained.multi_label:
            predicted = explained.labels.where(explained.correct, NOT_FOUND)
        predictions, ids = predicted.tolist(), explained.ids
        keys = list(zip(explained.indices.tolist(), explained.labels.tolist(), strict=True))
        for position, key in enumerate(keys):
            self.entries[key] = _Entry(
                ids[position],
                predictions[position],
                maps[position],
                None if mirrored is None else mirrored[position][:, ::-1],
            )
        if not set(keys) <= self._thumbnails.keys():
            images = self.pictures.pixels(explained)
            self._thumbnails |= {key: thumbnail(image) for key, image in zip(keys, images, strict=True)}

    def conclude(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: Literal["val", "test"]) -> None:
        self._method = None
        if self.idle:
            return
        if self._unproved and self._tell_of_changes():
            self._forget_the_first(trainer)
        self._unproved = False
        self._take_in(epochs_trained(trainer))
        if self.drifts:
            scalars = self.drifts[-1].scalars(self.similarities)
            on_device = {name: value.float().to(pl_module.device) for name, value in scalars.items()}
            log_scalars(pl_module, f"{stage}/{self.tag}drift/", on_device)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.idle or not self.history or trainer.sanity_checking:  # epoch 0 is written when the training starts
            return
        if self.monitor is not None:  # what the module itself logs at the end of an epoch is known only now
            self.history[-1] = replace(self.history[-1], score=self._score(trainer, self.monitor))
        self._write(trainer)
        self._draw(trainer)

    def _tell_of_changes(self) -> bool:
        """Whether the step of any process changes its images, which is said; a collective."""
        if not any(of_all_processes(self._changed)):
            return False
        rank_zero_warn(
            "DriftMonitor has no maps from before the training: validation_step changes the images before the model "
            "sees them. With the callback InitialValidation there are such maps."
        )
        return True

    def _forget_the_first(self, trainer: L.Trainer) -> None:
        """Epoch 0 was of other images than those that the model is given."""
        first, *self.history = self.history
        del self.drifts[0]
        self._thumbnails = {}
        if trainer.is_global_zero and self.folder is not None:
            first.path(self.folder).unlink(missing_ok=True)

    def _explain_mirrored(self, explained: Explained) -> Explanation:
        """The explanations of the mirrored images, by one more forward."""
        if self._method is None:
            self._method = create_explainer(self.request.explainer, explained.trace.module, **self.request.options)
        with self._precision.val_step_context():
            trace = self._method.trace(explained.trace.images.flip(-1))
        return self._method.explain(trace, explained.explanation.targets)

    def _take_in(self, epoch: int) -> None:
        """Add what was consumed, by all processes, to the history."""
        entries = dict(sorted(gather(self.entries).items()))
        self.entries = {}
        if not entries:
            return
        keep = sum(maps.epoch < epoch for maps in self.history)
        del self.history[keep:], self.drifts[keep:]
        places, targets = np.array(list(entries), dtype=np.int64).T
        values = list(entries.values())
        mirrored = np.stack([entry.mirrored for entry in values if entry.mirrored is not None]) if self.floor else None
        maps = PanelMaps(
            epoch,
            tuple(entry.id for entry in values),
            places,
            targets,
            np.array([entry.prediction for entry in values], dtype=np.int64),
            np.stack([entry.map for entry in values]),
            mirrored,
            mode=self.mode,
        )
        self.drifts.append(compare(maps, references_of(self.history, self.mode)))
        self.history.append(maps)

    def _score(self, trainer: L.Trainer, monitor: str) -> float:
        logged = trainer.callback_metrics
        if monitor not in logged:
            raise InputError(
                f"DriftMonitor's best epoch is by {monitor!r}, which is not logged: set its monitor to null or to one "
                f"of {', '.join(name for name in logged if '/drift/' not in name)}."
            )
        return float(logged[monitor])

    def _write(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and self.folder is not None and self.history:
            self.history[-1].write(self.folder)

    def _read(self, trainer: L.Trainer, saved: _Saved) -> list[PanelMaps]:
        """The history of a checkpoint, from its run folder; only the first process reads."""
        if not trainer.is_global_zero:
            return []
        folders = [Path(saved.folder)] if saved.folder is not None else []
        if trainer.ckpt_path is not None:  # the run folder may have moved
            folders.append(Path(trainer.ckpt_path).resolve().parent.parent / "drift" / self.explainer)
        files = [(epoch, [folder / f"epoch_{epoch:03d}.npz" for folder in folders]) for epoch in saved.epochs]
        found = {epoch: file for epoch, places in files for file in reversed(places) if file.is_file()}
        lost = [str(epoch) for epoch in saved.epochs if epoch not in found]
        if lost:
            rank_zero_warn(
                f"DriftMonitor finds no maps of epoch {', '.join(lost)} in {' or '.join(map(str, folders))}: "
                "the history goes on without them."
            )
        return [PanelMaps.read(found[epoch]) for epoch in saved.epochs if epoch in found]

    def _draw(self, trainer: L.Trainer) -> None:
        """Filmstrip and curves, to the loggers and into the run folder. To be called in every process."""
        if len(self.history) < 2:
            return
        moving = moving_most(self.drifts, self.style.rows)
        wanted = {self.history[-1].keys[row] for row in moving}
        images = gather({key: image for key, image in self._thumbnails.items() if key in wanted})
        if not trainer.is_global_zero:
            return
        pictures = draw_drift(self.history, self.drifts, moving, images, self.pictures.name, self.explainer, self.style)
        for name, image in pictures.items():
            log_image(trainer, f"val/{self.tag}{name}", image)
            if self.folder is not None:
                save_png(self.folder / f"{name}.png", image)


def _halves(explanation: Explanation, grid: tuple[int, int]) -> NDArray[np.float16]:
    """Maps on the grid of the patches, as they are kept: [n, gh, gw]."""
    halves: NDArray[np.float16] = on_grid(explanation.heatmaps, grid).half().cpu().numpy()
    return halves
