"""The drift of a run, from the maps that DriftMonitor left in its folder: ``evaluate.py --drift``. Runs no model."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch.utils.data import Dataset

from litcam.callbacks.drift_figures import Filmstrip, Pixels, draw_drift, moving_most
from litcam.callbacks.drift_history import Drift, Key, PanelMaps, drifts_of, read_history
from litcam.callbacks.reporting import save_png
from litcam.errors import InputError, LitcamError, unwritable
from litcam.evaluation.runs import find_checkpoints, load_run
from litcam.files import write_whole
from litcam.metrics.functional.similarity import SIMILARITIES


def find_histories(path: str | Path) -> dict[Path, list[PanelMaps]]:
    """The maps that DriftMonitors left in a run folder, or one in ``drift/<explainer>`` there, by these folders.

    Raises:
        InputError: if there are none, a file is damaged, or the maps are of one epoch alone.
    """
    path = Path(path).resolve()
    folders = [path, *sorted((path / "drift").glob("*"))]
    histories = {folder: history for folder in folders if (history := read_history(folder))}
    if not histories:
        raise InputError(f"There are no maps of DriftMonitor in {path}; name the folder of a run with this callback.")
    for folder, history in histories.items():
        if len(history) == 1:
            raise InputError(
                f"{folder} has the maps of epoch {history[0].epoch} alone, and drift is between epochs: train longer."
            )
    return histories


class RunImages:
    """The validation images of a run and the names of its classes, as far as its checkpoint and its data are there.

    Args:
        run: its folder.
        data: arguments of the data module that are to differ from the training's.

    Attributes:
        trouble: what is missing, in a sentence; None if nothing is.

    Raises:
        LitcamError: if ``data`` are given and there is such trouble.
    """

    def __init__(self, run: Path, data: Mapping[str, Any]) -> None:
        self.trouble: str | None = None
        self._names: dict[int, str] = {}
        self._dataset: Dataset[Any] | None = None
        self._data = data
        try:
            module, datamodule = load_run(find_checkpoints([run])[-1], data)
            self._names = dict(enumerate(module.class_names or ()))
            self._dataset = datamodule.dataset("val")
        except (LitcamError, OSError) as error:
            self._note(error)

    def name(self, label: int) -> str:
        """The name of a class; its index where nobody knows it."""
        return self._names.get(label, str(label))

    def pixels(self, maps: PanelMaps, rows: Iterable[int]) -> dict[Key, Pixels]:
        """Images of a panel, [H, W, 3] each; none, and a ``trouble``, if one of them is not there or another one."""
        if self._dataset is None:
            return {}
        found = {}
        try:
            for row in rows:
                place, target = maps.keys[row]
                sample = self._dataset[place]
                if sample["id"] != maps.ids[row]:
                    raise InputError(
                        f"The validation data have {sample['id']!r} where the run had {maps.ids[row]!r}; "
                        "name those of the run: --data.root …."
                    )
                found[place, target] = sample["image"].permute(1, 2, 0).numpy()
        except (LitcamError, OSError) as error:
            self._note(error)
            return {}
        return found

    def _note(self, error: Exception) -> None:
        if self._data:  # what was asked for has to be there
            raise error
        self.trouble = str(error)


def redraw(explainer: str, history: Sequence[PanelMaps], images: RunImages, style: Filmstrip, folder: Path) -> None:
    """Write ``drift.png`` and ``drift_curves.png`` as DriftMonitor draws them, and ``drift.csv``, a row per epoch.

    Raises:
        InputError: if the epochs are not of the same images, or the folder cannot be written.
    """
    drifts = drifts_of(history, history[-1].mode)
    moving = moving_most(drifts, style.rows)
    pixels = images.pixels(history[-1], moving)
    pictures = draw_drift(history, drifts, moving, pixels, images.name, explainer, style)
    try:
        for name, picture in pictures.items():
            save_png(folder / f"{name}.png", picture)
        write_whole(folder / "drift.csv", drift_table(drifts).to_csv(index=False))
    except OSError as error:
        raise unwritable(folder, error) from error


def drift_table(drifts: Sequence[Drift]) -> pd.DataFrame:
    """The scalars of every epoch, of all similarities and references; the first epoch has none to compare with."""
    rows = [
        {"epoch": drift.epoch, **{name: value.item() for name, value in drift.scalars(list(SIMILARITIES)).items()}}
        for drift in drifts
    ]
    return pd.DataFrame(rows[::-1])[::-1]  # the columns in the order of the last epoch, which has them all
