"""The maps of a panel of images, epoch by epoch, as they are kept in files, and how alike they are."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from litcam.errors import InputError
from litcam.files import write_whole
from litcam.heatmaps import is_degenerate
from litcam.metrics.functional.similarity import SIMILARITIES, gini, similarity

Key = tuple[int, int]  # an image's place in the dataset, and the class explained

REFERENCES = ("previous", "first", "best")
NOT_FOUND = -1  # the prediction for a class of multi-label data that the model does not find


@dataclass(frozen=True)
class PanelMaps:
    """The maps of a panel of n images after some epochs of training; of several labels each counts by itself.

    Attributes:
        epoch: how many epochs the model has been trained; 0 before any training.
        ids: the names of the images, or where those have none their places in the dataset.
        places: where they stand in the dataset, int64 [n].
        targets: the classes explained, int64 [n].
        predictions: the classes predicted, int64 [n]; in multi-label data the target or -1, found or not.
        maps: float16 [n, gh, gw], each scaled to [0, 1].
        mirrored: the maps of the mirrored images, mirrored back; None if they were not made.
        score: the monitored value; NaN where there is none.
        mode: whether a lower or a higher score is better, ``"min"`` or ``"max"``; None where none is monitored.
    """

    epoch: int
    ids: tuple[str, ...]
    places: NDArray[np.int64]
    targets: NDArray[np.int64]
    predictions: NDArray[np.int64]
    maps: NDArray[np.float16]
    mirrored: NDArray[np.float16] | None
    score: float = float("nan")
    mode: Literal["min", "max"] | None = None

    @property
    def keys(self) -> list[Key]:
        """Place and target of each image."""
        return list(zip(self.places.tolist(), self.targets.tolist(), strict=True))

    def path(self, folder: Path) -> Path:
        """Where they lie in a folder: ``epoch_000.npz``."""
        return folder / f"epoch_{self.epoch:03d}.npz"

    def write(self, folder: Path) -> Path:
        """Write ``epoch_000.npz``; a file of that name is replaced at once, never in part."""
        arrays = {
            name: value for name, value in vars(self).items() if name not in ("epoch", "ids") and value is not None
        }
        path = self.path(folder)
        whole = io.BytesIO()
        np.savez_compressed(whole, epoch=self.epoch, ids=np.array(self.ids, dtype=np.str_), **arrays)
        write_whole(path, whole.getbuffer())
        return path

    @classmethod
    def read(cls, path: Path) -> "PanelMaps":
        """Read what :meth:`write` wrote.

        Raises:
            InputError: if the file is damaged or another one.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            epoch, ids, score = int(arrays.pop("epoch")), tuple(arrays.pop("ids").tolist()), float(arrays.pop("score"))
            mode: Any = arrays.pop("mode").item() if "mode" in arrays else None
            return cls(epoch, ids, score=score, mode=mode, **{"mirrored": None, **arrays})
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError, EOFError) as error:
            raise InputError(f"{path} is damaged or holds no maps of DriftMonitor: remove it.") from error


def read_history(folder: str | Path) -> list[PanelMaps]:
    """The maps of every epoch that a DriftMonitor left in ``<run folder>/drift/<explainer>``, first epoch first."""
    return sorted((PanelMaps.read(path) for path in Path(folder).glob("epoch_*.npz")), key=lambda maps: maps.epoch)


@dataclass(frozen=True)
class Drift:
    """How the maps of an epoch compare with earlier ones, image by image.

    Attributes:
        epoch: of the maps.
        similarities: float64 [n] by reference (previous, first, best) and similarity; NaN for degenerate maps.
        unchanged: bool [n] by reference, which predictions are the same.
        floor: float64 [n] by similarity, of the maps and those of the mirrored images; empty if there are none.
        gini: float64 [n].
        num_degenerate: how many maps say nothing.
    """

    epoch: int
    similarities: Mapping[str, Mapping[str, Tensor]]
    unchanged: Mapping[str, Tensor]
    floor: Mapping[str, Tensor]
    gini: Tensor
    num_degenerate: int

    def scalars(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Means over images, of these similarities: ``<similarity>_<reference>``, with ``…_unchanged``, and more."""
        scalars: dict[str, Tensor] = {}
        for reference, values in self.similarities.items():
            same = self.unchanged[reference]
            for name in names:
                scalars[f"{name}_{reference}"] = values[name].nanmean()
                scalars[f"{name}_{reference}_unchanged"] = values[name][same].nanmean()
            scalars[f"unchanged_{reference}"] = same.double().mean()
        floors = {f"{name}_floor": self.floor[name].nanmean() for name in names if name in self.floor}
        return {**scalars, **floors, "gini": self.gini.nanmean(), "degenerate": torch.tensor(self.num_degenerate)}


def compare(maps: PanelMaps, references: Mapping[str, PanelMaps]) -> Drift:
    """The drift of an epoch's maps from those of other epochs, on the grid of the patches.

    Raises:
        InputError: if the maps are not of the same images and classes.
    """
    current = torch.from_numpy(maps.maps).double()
    similarities, unchanged = {}, {}
    for name, reference in references.items():
        if (maps.ids, maps.keys) != (reference.ids, reference.keys):
            raise InputError(
                f"DriftMonitor compares the same images in every epoch, but those of epoch {maps.epoch} are not those "
                f"of epoch {reference.epoch}: the validation dataloader must not shuffle, nor change between epochs."
            )
        similarities[name] = _all_similarities(current, reference.maps)
        unchanged[name] = torch.from_numpy(maps.predictions == reference.predictions)
    floor = {} if maps.mirrored is None else _all_similarities(current, maps.mirrored)
    return Drift(maps.epoch, similarities, unchanged, floor, gini(current), int(is_degenerate(current).sum()))


def _all_similarities(current: Tensor, others: NDArray[np.float16]) -> dict[str, Tensor]:
    return {name: similarity(name, current, torch.from_numpy(others).double()) for name in SIMILARITIES}


def references_of(history: Sequence[PanelMaps], mode: Literal["min", "max"] | None = "max") -> dict[str, PanelMaps]:
    """What an epoch after these is compared with; ``best`` is the first until an epoch has a score.

    Args:
        history: the maps of the epochs before; may be empty.
        mode: whether a lower or a higher score is better; None for no best one.
    """
    if not history:
        return {}
    references = {"previous": history[-1], "first": history[0]}
    if mode is not None:
        sign = 1 if mode == "max" else -1
        scored = [maps for maps in history if np.isfinite(maps.score)]
        references["best"] = max(scored, key=lambda maps: sign * maps.score, default=history[0])
    return references


def drifts_of(history: Sequence[PanelMaps], mode: Literal["min", "max"] | None = "max") -> list[Drift]:
    """The drift of every epoch of a history."""
    return [compare(maps, references_of(history[:number], mode)) for number, maps in enumerate(history)]
