"""LocalizedCheckpoint keeps what brute force over the whole history would choose, and no file that cannot win any more.

As a script it is one of two processes, which find each other by Lightning's environment variables.
"""

import json
import math
import random
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_cases import make_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from two_ranks import run_two_ranks

from litcam.callbacks.localized_checkpoint import LocalizedCheckpoint
from litcam.errors import InputError

NAN = math.nan
Script = Sequence[tuple[float, float]]  # localization and accuracy of every epoch


class Scripted(L.LightningModule):
    """Logs given numbers; its one weight counts the steps."""

    def __init__(self, script: Script, names: tuple[str, str] = ("val/iou", "val/accuracy"), own: bool = False) -> None:
        super().__init__()
        self.script, self.names, self.own = script, names, own
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return -self.weight

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        epoch = self.current_epoch if not self.own else self.current_epoch + 100 * self.global_rank
        for name, value in zip(self.names, self.script[epoch % 100], strict=True):
            self.log(name, value + (self.global_rank if self.own else 0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Watch(L.Callback):
    """Notes after every epoch what lies in the folder: the chosen epoch by its content, and the names."""

    def __init__(self, checkpoint: LocalizedCheckpoint) -> None:
        self.checkpoint = checkpoint
        self.chosen: list[int | None] = []
        self.files: list[set[str]] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch:
            self.note()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.note()

    def note(self) -> None:
        folder = Path(str(self.checkpoint.dirpath))
        link = folder / "best_localized.ckpt"
        self.chosen.append(epoch_of(link) if link.exists() else None)
        self.files.append({path.name for path in folder.glob("best_localized-*.ckpt")} if folder.exists() else set())


def epoch_of(path: Path) -> int:
    """The epoch of a checkpoint, by its own word and by its weight, which has made one step per epoch."""
    content = torch.load(path, weights_only=True)
    assert content["state_dict"]["weight"] == content["global_step"] == content["epoch"] + 1
    return int(content["epoch"])


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(1)), 1)


def fit(folder: Path, script: Script, checkpoint: LocalizedCheckpoint, **options: Any) -> Watch:
    watch = Watch(checkpoint)
    trainer = make_trainer(
        folder,
        [checkpoint, watch, *options.pop("others", [])],
        max_epochs=options.pop("max_epochs", len(script)),
        enable_checkpointing=True,
        limit_train_batches=1,
        **options.pop("trainer", {}),
    )
    trainer.fit(Scripted(script), batches(), batches(), weights_only=True, **options)
    return watch


def by_hand(script: Script, tolerance: float, mode: str = "max") -> int | None:
    """The epoch to be chosen, from the whole history."""
    sign = 1 if mode == "max" else -1
    known = [(sign * loc, acc, -epoch) for epoch, (loc, acc) in enumerate(script) if not math.isnan(loc + acc)]
    best = max((accuracy for _, accuracy, _ in known), default=0)
    return -max(one for one in known if one[1] >= best - tolerance)[2] if known else None


def can_still_win(script: Script, tolerance: float) -> set[int]:
    """The epochs that a continuation of the training could make the choice: every later best accuracy is tried."""
    known = [accuracy for loc, accuracy in script if not math.isnan(loc + accuracy)]
    later = [(-1.0, accuracy + tolerance) for accuracy in known]  # raises the best accuracy, and never wins itself
    return {by_hand([*script, one], tolerance) for one in [(-1.0, 0.0), *later]} - {len(script), None}  # type: ignore[arg-type]


def random_script(seed: int, epochs: int = 12) -> Script:
    """Numbers on a coarse grid, exact in binary, so that there are ties; of some the accuracy rises; few are NaN."""
    draw = random.Random(seed)
    script = []
    for epoch in range(epochs):
        accuracy = (draw.randint(0, 12 if seed % 4 == 0 else 4) + (epoch if seed % 2 else 0)) / 64
        script.append((NAN if draw.random() < 0.05 else draw.randint(0, 10) / 16, accuracy))
    return script


@pytest.mark.parametrize("seed", range(60))
def test_the_choice_is_that_of_brute_force_and_only_files_that_can_still_win_are_kept(
    tmp_path: Path, seed: int
) -> None:
    script, tolerance = random_script(seed), (0, 2 / 64, 5 / 64)[seed % 3]
    watch = fit(tmp_path, script, LocalizedCheckpoint("val/iou", tolerance=tolerance))
    for epoch in range(len(script)):
        history = script[: epoch + 1]
        assert watch.chosen[epoch] == by_hand(history, tolerance)
        expected = {f"best_localized-epoch={one}-step={one + 1}.ckpt" for one in can_still_win(history, tolerance)}
        assert watch.files[epoch] == expected
    for path in (tmp_path / "checkpoints").glob("best_localized-*.ckpt"):
        assert f"epoch={epoch_of(path)}-" in path.name


def test_the_scripts_are_hard_enough_for_an_error_to_show() -> None:
    """In many of them an earlier epoch becomes the choice again, and the most accurate one is not the choice."""
    again = other = waiting = 0
    for seed in range(60):
        script, tolerance = random_script(seed), (0, 2 / 64, 5 / 64)[seed % 3]
        choices = [by_hand(script[: epoch + 1], tolerance) or 0 for epoch in range(len(script))]
        again += any(later < earlier for earlier, later in pairwise(choices))
        other += choices[-1] != by_hand(script, 0)
        waiting += max(len(can_still_win(script[: epoch + 1], tolerance)) for epoch in range(len(script))) > 2
    assert again >= 2
    assert other >= 15
    assert waiting >= 10


def test_an_earlier_checkpoint_is_the_choice_when_the_best_accuracy_rises(tmp_path: Path) -> None:
    script = [(0.5, 0.900), (0.8, 0.895), (0.6, 0.903), (0.1, 0.9065), (0.2, 0.950)]
    watch = fit(tmp_path, script, LocalizedCheckpoint("val/iou"))
    assert watch.chosen == [0, 1, 1, 2, 4]
    assert [len(files) for files in watch.files] == [2 - 1, 2, 2, 2, 1]


def test_within_the_tolerance_means_up_to_and_with_it_whatever_the_rounding(tmp_path: Path) -> None:
    for number, best in enumerate((0.91, 0.32, 0.07, 0.97)):
        script = [(0.8, best - 0.01), (0.5, best)]
        assert fit(tmp_path / str(number), script, LocalizedCheckpoint("val/iou")).chosen == [0, 0]
    script = [(0.8, 0.90), (0.5, 0.9101)]
    assert fit(tmp_path / "beyond", script, LocalizedCheckpoint("val/iou")).chosen == [0, 1]


def test_lower_is_better_in_mode_min(tmp_path: Path) -> None:
    script = [(0.5, 0.9), (0.3, 0.895), (0.4, 0.9)]
    checkpoint = LocalizedCheckpoint("val/iou", mode="min")
    assert fit(tmp_path, script, checkpoint).chosen == [0, 1, 1]
    assert float(checkpoint.best_model_score) == pytest.approx(0.3)
    assert checkpoint.best_model_path == str(tmp_path / "checkpoints" / "best_localized.ckpt")


def test_nan_never_counts_and_nothing_is_kept_of_it(tmp_path: Path) -> None:
    script = [(NAN, 0.99), (0.5, NAN), (0.4, 0.5), (NAN, 0.99)]
    watch = fit(tmp_path, script, LocalizedCheckpoint("val/iou"))
    assert watch.chosen == [None, None, 2, 2]
    assert watch.files[:2] == [set(), set()]


@pytest.mark.parametrize("place", ["same", "other", "moved"])
@pytest.mark.parametrize("seed", [1, 3, 4, 8])
def test_a_resumed_fit_chooses_among_all_epochs_of_both_parts(tmp_path: Path, seed: int, place: str) -> None:
    script, tolerance = random_script(seed), 5 / 64
    first = tmp_path / "first"
    last = ModelCheckpoint(first / "checkpoints", "last", enable_version_counter=False)
    before = fit(first, script, LocalizedCheckpoint("val/iou", tolerance=tolerance), max_epochs=4, others=[last])
    if place == "moved":
        first = first.rename(tmp_path / "elsewhere")
    second = tmp_path / "second" if place == "other" else first
    watch = fit(
        second,
        script,
        LocalizedCheckpoint("val/iou", tolerance=tolerance),
        ckpt_path=first / "checkpoints" / "last.ckpt",
    )
    expected = [by_hand(script[: epoch + 1], tolerance) for epoch in range(len(script))]
    assert before.chosen == expected[:4]
    assert watch.chosen[-8:] == expected[4:]
    if place == "other":
        kept = {path.name for path in (first / "checkpoints").glob("best_localized-*.ckpt")}
        assert kept == before.files[-1], "the first run's files are not touched"


def test_lost_files_are_named_and_no_longer_chosen(tmp_path: Path) -> None:
    script = [(0.8, 0.90), (0.6, 0.905), (0.5, 0.904), (0.1, 0.90)]
    last = ModelCheckpoint(tmp_path / "checkpoints", "last", enable_version_counter=False)
    fit(tmp_path, script, LocalizedCheckpoint("val/iou"), max_epochs=2, others=[last])
    (tmp_path / "checkpoints" / "best_localized-epoch=0-step=1.ckpt").unlink()
    checkpoint = LocalizedCheckpoint("val/iou")
    with pytest.warns(UserWarning, match=r"goes on without .*best_localized-epoch=0-step=1.ckpt"):
        watch = fit(tmp_path, script, checkpoint, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert watch.chosen[-2:] == [1, 1]
    assert len(checkpoint.candidates) == 1


def test_the_chosen_checkpoint_knows_itself_and_a_fit_resumed_from_the_link_goes_on(tmp_path: Path) -> None:
    script = [(0.5, 0.9), (0.8, 0.9), (0.7, 0.9), (0.9, 0.9)]
    link = tmp_path / "checkpoints" / "best_localized.ckpt"
    fit(tmp_path, script, LocalizedCheckpoint("val/iou"), max_epochs=3)
    content = torch.load(link, weights_only=True)
    [state] = [value for key, value in content["callbacks"].items() if key.startswith("LocalizedCheckpoint")]
    assert [candidate[1] for candidate in state["candidates"]] == [2]
    watch = fit(tmp_path, script, LocalizedCheckpoint("val/iou"), ckpt_path=link)
    assert watch.chosen[-2:] == [1, 3]
    assert epoch_of(link) == 3


def test_weights_alone_are_saved_where_that_is_asked_for(tmp_path: Path) -> None:
    fit(tmp_path, [(0.5, 0.9)], LocalizedCheckpoint("val/iou", save_weights_only=True))
    assert "optimizer_states" not in torch.load(tmp_path / "checkpoints" / "best_localized.ckpt", weights_only=True)


def test_it_stands_beside_model_checkpoints_and_others_of_its_kind(tmp_path: Path) -> None:
    script = [(0.8, 0.895), (0.5, 0.9), (0.9, 0.8)]
    accurate = ModelCheckpoint(tmp_path / "checkpoints", "best", "val/accuracy", mode="max")
    wide = LocalizedCheckpoint("val/iou", tolerance=0.2, filename="wide")
    watch = fit(tmp_path, script, LocalizedCheckpoint("val/iou"), others=[accurate, wide])
    assert watch.chosen == [0, 0, 0]
    assert epoch_of(Path(accurate.best_model_path)) == 1
    assert epoch_of(tmp_path / "checkpoints" / "wide.ckpt") == 2


@pytest.mark.parametrize(
    "options", [{"val_check_interval": 0.5, "limit_train_batches": 2}, {"check_val_every_n_epoch": 2}]
)
def test_every_validation_counts_however_often_there_is_one(tmp_path: Path, options: dict[str, Any]) -> None:
    class Several(Scripted):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            for name, value in zip(self.names, self.script[self.global_step - 1], strict=True):
                self.log(name, value)

    script = [(0.5, 0.9), (0.4, 0.9), (0.8, 0.9), (0.3, 0.9)]
    checkpoint = LocalizedCheckpoint("val/iou")
    settings = {"max_epochs": 4 if "check_val_every_n_epoch" in options else 2, "limit_train_batches": 1, **options}
    trainer = make_trainer(tmp_path, [checkpoint], enable_checkpointing=True, num_sanity_val_steps=0, **settings)
    trainer.fit(Several(script), DataLoader(TensorDataset(torch.zeros(2)), 1), batches())
    content = torch.load(tmp_path / "checkpoints" / "best_localized.ckpt", weights_only=True)
    assert content["global_step"] == (2 if "check_val_every_n_epoch" in options else 3)


def test_neither_the_sanity_check_nor_a_fast_dev_run_nor_a_validation_writes_anything(tmp_path: Path) -> None:
    script = [(0.5, 0.9)]
    checkpoint = LocalizedCheckpoint("val/iou")
    trainer = make_trainer(tmp_path, [checkpoint], enable_checkpointing=True)
    trainer.validate(Scripted(script), batches(), verbose=False)
    fit(tmp_path, script, LocalizedCheckpoint("val/iou"), trainer={"fast_dev_run": True})
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "best"}, "mode is 'best'; choose one of min, max"),
        ({"tolerance": -0.1}, r"tolerance is -0.1; it has to be 0 or more"),
        ({"tolerance": NAN}, r"tolerance is nan; it has to be 0 or more"),
        ({"filename": ""}, "filename is ''; it has to be a plain name"),
        ({"filename": "best-{epoch}"}, "it has to be a plain name"),
        ({"filename": "a/b"}, "it has to be a plain name"),
    ],
)
def test_a_wrong_argument_is_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LocalizedCheckpoint(**arguments)


@pytest.mark.parametrize(("monitor", "accuracy"), [("val/agcam/iou", "val/accuracy"), ("val/iou", "val/acc")])
def test_a_value_that_is_not_logged_is_named_with_those_that_are(tmp_path: Path, monitor: str, accuracy: str) -> None:
    missing = monitor if monitor != "val/iou" else accuracy
    with pytest.raises(InputError, match=f"chooses by '{missing}', which is not logged: .* of val/iou, val/accuracy"):
        fit(tmp_path, [(0.5, 0.9)], LocalizedCheckpoint(monitor, accuracy))


def test_a_folder_that_is_not_local_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"links files in memory://here, which only works in a local folder"):
        fit(tmp_path, [(0.5, 0.9)], LocalizedCheckpoint("val/iou", dirpath="memory://here"))


# Two processes.

SCRIPT = random_script(1)


def run(folder: Path, rank: int, own: bool) -> dict[str, Any]:
    """One process of two; with ``own`` numbers the second process logs others than the first."""
    checkpoint = LocalizedCheckpoint("val/iou", tolerance=5 / 64)
    options = {"strategy": "ddp", "devices": 2, "max_epochs": len(SCRIPT), "limit_train_batches": 1}
    trainer = make_trainer(folder, [checkpoint], enable_checkpointing=True, **options)
    trainer.fit(Scripted(SCRIPT, own=own), DataLoader(TensorDataset(torch.zeros(2)), 1), batches())
    return {"candidates": checkpoint.state_dict()["candidates"], "path": checkpoint.best_model_path}


def test_two_processes_agree_even_where_their_numbers_do_not(tmp_path: Path) -> None:
    run_two_ranks(__file__, str(tmp_path))
    first, second = (json.loads((tmp_path / f"process_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for case in ("equal", "own"):
        folder = tmp_path / case / "checkpoints"
        assert epoch_of(folder / "best_localized.ckpt") == by_hand(SCRIPT, 5 / 64)
        names = {f"best_localized-epoch={one}-step={one + 1}.ckpt" for one in can_still_win(SCRIPT, 5 / 64)}
        assert {path.name for path in folder.glob("best_localized-*.ckpt")} == names


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, number = Path(sys.argv[1]), int(sys.argv[2])
    seen = {case: run(root / case, number, case == "own") for case in ("equal", "own")}
    (root / f"process_{number}.json").write_text(json.dumps(seen))
