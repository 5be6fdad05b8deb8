"""A resumed fit does what the uninterrupted one does after the checkpoint: to the bit, and nothing twice."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_cases import UserModule, loader
from PIL import Image
from resume_cases import SAVERS, Told, checkpoints, fit, scenes
from two_ranks import run_two_ranks

from litcam.callbacks import DriftMonitor, LocalizationMonitor, LocalizedCheckpoint, RelianceMonitor, ShortcutAlarm
from litcam.classifier import ViTClassifier
from litcam.data import FolderDataModule

OPTIONS: dict[str, dict[str, Any]] = {
    "validation once an epoch": {},
    "validation in the middle of an epoch": {"val_check_interval": 0.5},
    "accumulated gradients": {"accumulate_grad_batches": 2},
    "validation between accumulated gradients": {"accumulate_grad_batches": 3, "val_check_interval": 2},
    "a part of the batches": {"limit_train_batches": 3},
    "validation every second epoch": {"check_val_every_n_epoch": 2},
    "validation over the epochs": {"check_val_every_n_epoch": None, "val_check_interval": 3},
    "no validation": {"limit_val_batches": 0},
    "new loaders in every epoch": {"reload_dataloaders_every_n_epochs": 1},
    "the same batches in every epoch": {"overfit_batches": 3},
    "steps for a limit": {"max_steps": 7, "max_epochs": -1},
}


def assert_the_same(resumed: Told, straight: Told, before: int, name: str) -> None:
    assert repr(resumed.events) == repr(straight.events[before:]), name
    assert repr(resumed.history) == repr(straight.history), name  # NaN is NaN


@pytest.mark.parametrize("kind", OPTIONS)
def test_from_every_checkpoint_a_fit_goes_on_as_if_it_had_not_been_cut(tmp_path: Path, kind: str) -> None:
    straight = fit(tmp_path, **OPTIONS[kind])
    assert len(straight.events) >= 10
    for file, before in checkpoints(tmp_path)[:: 1 if "between" in kind else 2]:
        if before < len(straight.events) - 1:  # otherwise the fit is over
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                resumed = fit(tmp_path / "resumed", (), file, **OPTIONS[kind])
            assert_the_same(resumed, straight, before, file.name)
            assert not [one for one in caught if "resum" in str(one.message)], "nothing is amiss, so nothing is said"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_that_read_ahead_begin_where_the_checkpoint_was_made(tmp_path: Path, num_workers: int) -> None:
    straight = fit(tmp_path)
    for name in ("batch-step=3", "epoch-step=4", "batch-step=6"):
        [before] = [before for file, before in checkpoints(tmp_path) if file.stem == name]
        resumed = fit(tmp_path / "resumed", (), tmp_path / f"{name}.ckpt", lambda: scenes(num_workers))
        assert_the_same(resumed, straight, before, name)


def test_pictures_are_shuffled_and_augmented_as_if_the_fit_had_not_been_cut(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    for number in range(24):
        file = tmp_path / ("train" if number < 18 else "val") / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(file)

    def model() -> ViTClassifier:
        torch.manual_seed(0)
        kwargs = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
        return ViTClassifier("vit_tiny_patch16_224", 2, False, kwargs, drop_path=0.1, mixup=0.2)

    def cut(num_workers: int) -> dict[str, Any]:
        data = lambda: FolderDataModule(str(tmp_path), batch_size=4, num_workers=num_workers)  # noqa: E731
        return {"data": data, "make_model": model, "boxes": False}

    straight = fit(tmp_path, **cut(0))
    assert len({event[-1] for event in straight.events if event[0] == "batch"}) == 8, "it learns"
    for name, num_workers in (("batch-step=2", 0), ("epoch-step=4", 1), ("batch-step=7", 1)):
        [before] = [before for file, before in checkpoints(tmp_path) if file.stem == name]
        resumed = fit(tmp_path / "resumed", (), tmp_path / f"{name}.ckpt", **cut(num_workers))
        assert_the_same(resumed, straight, before, name)


def test_two_processes_with_workers_resume_exactly(tmp_path: Path) -> None:
    run_two_ranks(Path(__file__).with_name("resume_cases.py"), str(tmp_path))
    assert len(checkpoints(tmp_path)) >= 6


def watched() -> tuple[DriftMonitor, ShortcutAlarm, RelianceMonitor]:
    """What keeps a history of its own."""
    alarm = ShortcutAlarm("rollout", num_images=None, min_accuracy=0.0)
    return DriftMonitor("center", num_images=5), alarm, RelianceMonitor(num_images=None)


def histories(drift: DriftMonitor, alarm: ShortcutAlarm, reliance: RelianceMonitor) -> str:
    maps = [(one.epoch, one.score, one.predictions.tolist(), one.maps.tolist()) for one in drift.history]
    drifts = [one.scalars(("spearman",)) for one in drift.drifts]
    return repr((maps, drifts, alarm.history, alarm.since, reliance.history))


def test_no_monitor_loses_or_doubles_an_epoch_of_its_history(tmp_path: Path) -> None:
    options = {"val_check_interval": 2, "tensorboard": True}
    monitors = watched()
    straight = fit(tmp_path, others=monitors, **options)
    for name, place in (("batch-step=2", "elsewhere"), ("validation-step=6", ".")):  # which has gone on from there
        [before] = [before for file, before in checkpoints(tmp_path) if file.stem == name]
        again = watched()
        resumed = fit(tmp_path / place, (), tmp_path / f"{name}.ckpt", others=again, **options)
        assert_the_same(resumed, straight, before, name)
        assert histories(*again) == histories(*monitors), name
        rows = (tmp_path / place / "run" / "history.csv").read_text().splitlines()
        assert len(rows) == 1 + 4, name


class Interrupt(L.Callback):
    """Ctrl-C at the n-th call of a hook."""

    def __init__(self, hook: str, number: int) -> None:
        self.left = number
        setattr(self, hook, self.called)

    def called(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= not trainer.sanity_checking
        if self.left == 0:
            raise KeyboardInterrupt


ON_EXCEPTION = [{"filename": "interrupted", "save_top_k": 1, "save_on_exception": True}]


@pytest.fixture(scope="module", params=[{}, {"accumulate_grad_batches": 2, "val_check_interval": 3}])
def uncut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, dict[str, Any]]:
    """A fit, and its options."""
    return fit(tmp_path_factory.mktemp("uncut"), (), **request.param), request.param


@pytest.mark.parametrize(
    ("hook", "number"),
    [
        ("on_train_batch_start", 3),
        ("on_train_batch_end", 6),
        ("on_validation_start", 1),
        ("on_validation_batch_end", 2),
        ("on_validation_end", 1),
        ("on_train_epoch_start", 2),
    ],
)
def test_a_checkpoint_made_at_ctrl_c_is_resumed_exactly(
    uncut: tuple[Told, dict[str, Any]], tmp_path: Path, hook: str, number: int
) -> None:
    straight, options = uncut
    with pytest.raises(SystemExit):
        fit(tmp_path, ON_EXCEPTION, others=[Interrupt(hook, number)], **options)
    resumed = fit(tmp_path / "resumed", (), tmp_path / "interrupted.ckpt", **options)
    assert resumed.events[-1] == straight.events[-1]
    assert repr(resumed.history) == repr(straight.history)


def test_a_checkpoint_from_the_middle_of_a_step_says_that_its_batch_counts_twice(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fit(tmp_path, ON_EXCEPTION, others=[Interrupt("on_before_optimizer_step", 3)])
    with pytest.warns(UserWarning, match="in the middle of a training step: that batch is used again"):
        fit(tmp_path / "resumed", (), tmp_path / "interrupted.ckpt")


def test_what_the_resumed_fit_has_otherwise_is_said_in_a_sentence(tmp_path: Path) -> None:
    fit(tmp_path, SAVERS[:1])
    with pytest.warns(UserWarning, match="accumulate_grad_batches 1 then, 2 now"):
        fit(tmp_path / "resumed", (), tmp_path / "batch-step=2.ckpt", accumulate_grad_batches=2)
    with pytest.warns(UserWarning, match="batches per epoch 4 then, 3 now"):
        fit(tmp_path / "resumed", (), tmp_path / "batch-step=2.ckpt", limit_train_batches=3)


def test_a_loader_of_the_users_own_is_said_not_to_resume(tmp_path: Path) -> None:
    def own(ckpt_path: Path | None = None) -> None:
        class Plain(L.LightningDataModule):
            train_dataloader = val_dataloader = lambda _: loader(8)

        fit(tmp_path, [{"filename": "{step}", "every_n_train_steps": 1}], ckpt_path, Plain, make_model=UserModule)

    own()
    with pytest.warns(UserWarning, match="from a loader of your own, from wherever that begins"):
        own(tmp_path / "step=1.ckpt")


def best(folder: Path, ckpt_path: Path | None = None, stop: int | None = None) -> list[tuple[Any, ...]]:
    """What each of several savers holds after a fit of five epochs, or of ``stop``."""
    savers = [
        {"filename": "best", "monitor": "val/accuracy", "mode": "max", "save_top_k": 1},
        {"filename": "best_iou", "monitor": "val/agcam/iou", "mode": "max", "save_top_k": 1},
        {"filename": "low-{epoch}", "monitor": "val/loss", "mode": "min", "save_top_k": 2},
        {"filename": "last", "save_top_k": 1},
    ]
    localized = LocalizedCheckpoint("val/agcam/iou", dirpath=str(folder), tolerance=0.2)
    others = [LocalizationMonitor("agcam"), *([Interrupt("on_train_epoch_start", stop + 1)] if stop else [])]
    try:
        told = fit(folder, savers, ckpt_path, others=[*others, localized], max_epochs=5)
    except SystemExit:
        return []
    return [described(saver) for saver in told.trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]


def described(saver: ModelCheckpoint) -> tuple[Any, ...]:
    file = Path(saver.best_model_path)
    content = torch.load(file, weights_only=True)
    scores = sorted((Path(path).name, float(score)) for path, score in saver.best_k_models.items())
    weights = float(sum(value.double().sum() for value in content["state_dict"].values()))
    return file.parent == Path(str(saver.dirpath)), file.name, content["epoch"], weights, scores


@pytest.mark.filterwarnings("ignore:Of the best checkpoints", "ignore:LocalizedCheckpoint goes on without")
def test_the_best_of_all_epochs_stays_the_best_in_the_folder_of_the_resumed_fit(tmp_path: Path) -> None:
    straight = best(tmp_path / "straight")
    assert len({epoch for _, _, epoch, *_ in straight}) >= 3, "the savers choose different epochs"
    best(tmp_path / "cut", stop=3)
    for name in ("best", "best_iou", "last", "best_localized"):
        assert best(tmp_path / name, tmp_path / "cut" / f"{name}.ckpt") == straight, name


def test_a_best_checkpoint_that_was_overwritten_later_is_not_taken_for_that_of_the_past(tmp_path: Path) -> None:
    savers = [{"filename": "best", "monitor": "epoch", "mode": "max", "save_top_k": 1}, SAVERS[2]]

    class Epoch(L.Callback):
        def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            pl_module.log("epoch", float(trainer.current_epoch))

    fit(tmp_path, savers, others=[Epoch()])
    with pytest.warns(UserWarning, match=r"by epoch before the resume, .*best.ckpt can no longer be found or are of a"):
        fit(tmp_path / "resumed", savers, tmp_path / "epoch-step=4.ckpt", others=[Epoch()])
    assert torch.load(tmp_path / "resumed" / "best.ckpt", weights_only=True)["epoch"] == 1
