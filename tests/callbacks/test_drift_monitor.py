"""DriftMonitor: the maps of a fixed panel in every epoch, from before the training on, and how they move.

As a script it is one of two processes, which find each other by Lightning's environment variables.
"""

import copy
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_cases import (
    History,
    Scenes,
    UserModule,
    as_pair,
    assert_left_alone,
    digits,
    loader,
    logged,
    make_trainer,
    tiny_classifier,
    tiny_net,
)
from PIL import Image
from scipy.stats import spearmanr
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from two_ranks import run_two_ranks

import litcam
from litcam.callbacks import HeatmapLogger, InitialValidation, LocalizationMonitor, StepSeed, drift_figures
from litcam.callbacks.drift_figures import Filmstrip, draw_drift, draw_filmstrip, moving_most
from litcam.callbacks.drift_history import PanelMaps, compare, read_history, references_of
from litcam.callbacks.drift_history import drifts_of as compare_all
from litcam.callbacks.drift_monitor import DriftMonitor
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule
from litcam.data.batch import collate
from litcam.errors import InputError
from litcam.heatmaps import scale
from litcam.metrics.functional.similarity import SIMILARITIES

RED, GREEN = (200, 30, 30), (20, 120, 50)


class Frozen(UserModule):
    """Learns nothing, so that runs with other batches keep the same weights; has a buffer, which DDP synchronises."""

    def __init__(self) -> None:
        super().__init__(tiny_net().requires_grad_(False))
        self.factor = nn.Parameter(torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) * self.factor + self.shift

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.factor], lr=0.0)


def by_hand(net: nn.Module, data: Any, flip: bool = False) -> Tensor:
    """The scaled maps of all images of a loader, of their true classes, one image at a time."""
    method = litcam.create_explainer("agcam", net)
    maps = []
    for batch in data:
        for image, label in zip(*as_pair(batch), strict=True):
            images = image[None].flip(-1) if flip else image[None]
            found = method(images, label[None]).heatmaps
            maps.append(scale(found.flip(-1) if flip else found)[0])
    return torch.stack(maps)


def assert_maps(maps: PanelMaps, expected: Tensor) -> None:
    """In float16, each with its own extremes at 0 and 1."""
    assert maps.maps.dtype == np.float16
    assert (maps.maps.max((1, 2)) == 1).all()
    np.testing.assert_allclose(maps.maps.astype(float), expected[maps.places], atol=2e-3)


def folder_of(path: Path) -> Path:
    return path / "drift" / "agcam"


def fit(path: Path, monitor: L.Callback, module: Any = None, data: Any = None, **options: Any) -> History:
    """A fit of a few epochs, and what it logged."""
    history = History()
    callbacks = [history, *([monitor] if isinstance(monitor, L.Callback) else monitor)]
    trainer = make_trainer(path, callbacks, **{"max_epochs": 3, **options})
    trainer.fit(UserModule() if module is None else module, loader(8), loader() if data is None else data)
    return history


def unscored(**options: Any) -> DriftMonitor:
    """A monitor for modules that log a loss alone."""
    return DriftMonitor(**{"monitor": "val/loss", "mode": "min", **options})


# The maps.


@pytest.mark.parametrize("sanity_steps", [0, 2, -1])
def test_epoch_0_has_the_maps_before_any_training_and_every_epoch_its_own(tmp_path: Path, sanity_steps: int) -> None:
    module = UserModule()
    before = copy.deepcopy(module.net)
    history = fit(tmp_path, unscored(), module, num_sanity_val_steps=sanity_steps)
    found = read_history(folder_of(tmp_path))
    assert [maps.epoch for maps in found] == [0, 1, 2, 3]
    for maps, net in zip(found, [before, *history.modules], strict=True):
        assert maps.ids == tuple(str(index) for index in range(11))
        assert maps.places.tolist() == list(range(11))
        assert_maps(maps, by_hand(net, loader()))
        np.testing.assert_allclose(maps.mirrored.astype(float), by_hand(net, loader(), flip=True), atol=2e-3)
        logits = torch.cat([net(batch["image"]) for batch in loader()])
        assert maps.predictions.tolist() == logits.argmax(1).tolist()
        assert maps.targets.tolist() == torch.cat([batch["label"] for batch in loader()]).tolist()
    assert not np.array_equal(found[0].maps, found[1].maps)


def test_the_panel_is_the_random_subset_of_the_other_monitors_and_the_same_every_epoch(tmp_path: Path) -> None:
    panel = HeatmapLogger(num_images=4, seed=3)
    fit(tmp_path, [unscored(num_images=4, seed=3), panel])
    for maps in read_history(folder_of(tmp_path)):
        assert sorted(maps.places.tolist()) == sorted(index for index, _ in panel.entries)
        assert maps.places.tolist() != [0, 1, 2, 3]


def test_the_data_module_of_the_house_is_normalised_before_the_training_too(tmp_path: Path) -> None:
    module, data = tiny_classifier(lr=0.05), digits()
    before = copy.deepcopy(module.net)
    trainer = make_trainer(tmp_path, [DriftMonitor(num_images=6)])
    trainer.fit(module, data)
    batches = [data.normalize(batch) for batch in data.evaluation_dataloader("val")]
    first, second = read_history(folder_of(tmp_path))
    assert_maps(first, by_hand(before, batches))
    assert first.ids == second.ids
    assert second.score == pytest.approx(logged(trainer)["val/accuracy"])


class Inverts(UserModule):
    """Its step changes the images first."""

    def logits(self, images: Tensor) -> Tensor:
        return self(1 - 2 * images)


class NetAlone(UserModule):
    """Its step leaves forward aside."""

    def logits(self, images: Tensor) -> Tensor:
        return self.net(images)


class SeveralLoaders(UserModule):
    """Its step has all of Lightning's arguments."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert dataloader_idx in (0, 1)
        super().validation_step(batch, batch_idx, dataloader_idx)


class OneArgument(UserModule):
    """Its step has none of them."""

    def validation_step(self, batch: Any) -> None:  # type: ignore[override]
        super().validation_step(batch, 0)


class BatchwiseForward(UserModule):
    """Its forward takes a batch."""

    def forward(self, batch: Any) -> Tensor:
        return self.net(as_pair(batch)[0])

    def logits(self, images: Tensor) -> Tensor:
        return self({"image": images, "label": None})


class NormalisesInForward(UserModule):
    """Its forward changes the images first."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(1 - 2 * images)


@pytest.mark.parametrize("kind", [NetAlone, SeveralLoaders, OneArgument, BatchwiseForward, NormalisesInForward])
def test_epoch_0_is_what_the_modules_own_step_would_see(tmp_path: Path, kind: Any) -> None:
    """Nothing is learnt, so that all epochs have the same maps."""
    module = kind(tiny_net().requires_grad_(False))
    module.factor = nn.Parameter(torch.zeros(()))
    module.training_step = lambda batch, batch_idx: module.factor * 0
    data = [loader(), loader(3)] if kind is SeveralLoaders else loader()
    monitor = unscored(monitor=None)
    fit(tmp_path, monitor, module, data, max_epochs=1)
    assert_left_alone(module)
    first, second = read_history(folder_of(tmp_path))
    np.testing.assert_allclose(first.maps.astype(float), second.maps, atol=2e-3)


@pytest.mark.parametrize("sanity_steps", [0, 2], ids=["no sanity check", "sanity check"])
def test_where_the_step_changes_the_images_there_is_no_epoch_0_and_that_is_said(
    tmp_path: Path, sanity_steps: int
) -> None:
    with pytest.warns(UserWarning, match="DriftMonitor has no maps from before the training"):
        history = fit(tmp_path, unscored(), Inverts(), max_epochs=2, num_sanity_val_steps=sanity_steps)
    found = read_history(folder_of(tmp_path))
    assert [maps.epoch for maps in found] == [1, 2]
    inverted = [{**batch, "image": 1 - 2 * batch["image"]} for batch in loader()]
    assert_maps(found[0], by_hand(history.modules[0], inverted))
    first, second = history.scalars
    assert not any("_first" in name or "_previous" in name for name in first)
    assert second["val/agcam/drift/spearman_first"] == second["val/agcam/drift/spearman_previous"]


def test_with_an_initial_validation_there_is_an_epoch_0_of_the_images_that_the_step_has_changed(
    tmp_path: Path,
) -> None:
    module = Inverts()
    before = copy.deepcopy(module.net)
    fit(tmp_path, [unscored(), InitialValidation()], module, max_epochs=1)
    found = read_history(folder_of(tmp_path))
    assert [maps.epoch for maps in found] == [0, 1]
    assert_maps(found[0], by_hand(before, [{**batch, "image": 1 - 2 * batch["image"]} for batch in loader()]))


def test_a_fit_resumed_before_its_first_validation_still_drops_an_epoch_0_of_other_images(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False)
    options: dict[str, Any] = {"max_epochs": 1, "num_sanity_val_steps": 0, "enable_checkpointing": True}
    fit(tmp_path, [unscored(), saver], Inverts(), **options, max_steps=1)
    assert [maps.epoch for maps in read_history(folder_of(tmp_path))] == [0]
    resumed = make_trainer(tmp_path, [unscored()], **options)
    with pytest.warns(UserWarning, match="DriftMonitor has no maps from before the training"):
        resumed.fit(Inverts(), loader(8), loader(), ckpt_path=tmp_path / "1.ckpt")
    assert [maps.epoch for maps in read_history(folder_of(tmp_path))] == [1]


class CountsSteps(UserModule):
    """Its validation_step leaves traces: a number, a buffer that the training reads, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.register_buffer("seen", torch.zeros(()))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.steps.append(batch_idx)
        super().validation_step(batch, batch_idx, dataloader_idx)
        self.seen += torch.rand(())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1 + self.seen)


@pytest.mark.parametrize("sanity_steps", [0, 2], ids=["no sanity check", "sanity check"])
def test_a_step_with_side_effects_runs_as_often_as_without_the_monitor(tmp_path: Path, sanity_steps: int) -> None:
    left = []
    for monitors in ([], [unscored()]):
        torch.manual_seed(0)
        module = CountsSteps()
        fit(tmp_path, monitors, module, max_epochs=1, num_sanity_val_steps=sanity_steps)
        left.append((module.steps, {name: value.tolist() for name, value in module.state_dict().items()}))
    assert left[0] == left[1]
    assert len(left[0][0]) == 3 + sanity_steps
    assert [maps.epoch for maps in read_history(folder_of(tmp_path))] == [0, 1]


class Counted(Scenes):
    """Counts how often each image is read."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.read: list[int] = []

    def __getitem__(self, index: int) -> Any:
        if index < self.count:
            self.read.append(index)
        return super().__getitem__(index)


def test_before_the_training_no_image_is_read_but_those_of_the_panel(tmp_path: Path) -> None:
    data = Counted(11)
    monitor = unscored(num_images=3)
    fit(tmp_path, monitor, None, DataLoader(data, 4, collate_fn=collate), max_epochs=1, num_sanity_val_steps=0)
    assert data.read[3:] == list(range(11))
    assert sorted(data.read[:3]) == read_history(folder_of(tmp_path))[0].places.tolist()


@pytest.mark.parametrize("floor", [True, False])
def test_the_cost_is_a_forward_of_the_panel_before_the_training_and_one_per_epoch_for_the_floor(
    tmp_path: Path, floor: bool
) -> None:
    counts = []
    for monitors in ([], [unscored(num_images=5, floor=floor)]):
        module, images = UserModule(), 0

        def count(block: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal images
            images += len(output) if output.shape[1] > 1 else 0

        module.net.blocks[-1].register_forward_hook(count)
        fit(tmp_path, monitors, module, max_epochs=2)
        counts.append(images)
    proof = 1  # an image that shows that the net alone gives the module's logits
    assert counts[1] - counts[0] == proof + 5 + (3 * 5 if floor else 0)


def test_images_of_an_iterable_dataset_and_of_any_loader_are_taken_in_their_order(tmp_path: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([Scenes(11, pairs=True)[index] for index in range(11)])

    class Loader:
        def __iter__(self) -> Any:
            return iter(loader())

    for number, data in enumerate((DataLoader(Stream(), 4), Loader())):
        module = UserModule()
        before = copy.deepcopy(module.net)
        fit(tmp_path / str(number), unscored(num_images=6), module, data, max_epochs=1)
        first, second = read_history(folder_of(tmp_path / str(number)))
        assert first.places.tolist() == second.places.tolist() == list(range(6))
        assert_maps(first, by_hand(before, loader()))


def test_several_labels_of_an_image_count_by_themselves_found_or_not(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    module = ViTClassifier("vit_mini_patch8_64", 10, False, sizes, multi_label=True)
    data = DigitScenesDataModule(8, num_val=7, classes=2, batch_size=3, num_workers=0)
    monitor = DriftMonitor(num_images=3, monitor="val/map")
    make_trainer(tmp_path, [monitor]).fit(module, data)
    for maps in read_history(folder_of(tmp_path)):
        assert len(maps.ids) == 6
        assert len(set(maps.keys)) == 6
        assert len(set(maps.ids)) == 3
        assert all(found in (target, -1) for found, target in zip(maps.predictions, maps.targets, strict=True))


def test_maps_of_pixels_are_kept_on_the_grid_of_the_patches(tmp_path: Path) -> None:
    fit(tmp_path, unscored(explainer="saliency", num_images=2), max_epochs=1)
    (maps, _) = read_history(tmp_path / "drift" / "saliency")
    assert maps.maps.shape == (2, 4, 4)


def test_of_several_validations_in_an_epoch_the_last_one_stays(tmp_path: Path) -> None:
    monitor = unscored()
    history = fit(tmp_path, monitor, max_epochs=2, val_check_interval=1)
    assert len(history.scalars) == 4
    found = read_history(folder_of(tmp_path))
    assert [maps.epoch for maps in found] == [0, 1, 2]
    assert_maps(found[1], by_hand(history.modules[1], loader()))
    assert_maps(found[2], by_hand(history.modules[3], loader()))


def test_with_a_validation_every_second_epoch_epoch_0_is_there_too(tmp_path: Path) -> None:
    options = {"max_epochs": 4, "check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    fit(tmp_path, unscored(num_images=3), **options)
    assert [maps.epoch for maps in read_history(folder_of(tmp_path))] == [0, 2, 4]


# The numbers.


def means(one: PanelMaps, other: PanelMaps) -> tuple[float, float, float]:
    """Spearman's correlation over all images, over those with the same prediction, and the share of these."""
    values = np.array(
        [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(one.maps, other.maps, strict=True)], dtype=float
    )
    same = one.predictions == other.predictions
    return float(values.mean()), float(values[same].mean()) if same.any() else math.nan, float(same.mean())


@pytest.mark.parametrize("mode", ["min", "max"])
def test_scalars_are_those_of_the_files_for_every_reference(tmp_path: Path, mode: str) -> None:
    history = fit(tmp_path, unscored(mode=mode, similarities=("spearman", "centroid_shift")), max_epochs=4)
    found = read_history(folder_of(tmp_path))
    losses = [scalars["val/loss"] for scalars in history.scalars]
    assert [maps.score for maps in found] == pytest.approx([math.nan, *losses], nan_ok=True)
    assert {maps.mode for maps in found} == {mode}
    for number, scalars in enumerate(history.scalars, start=1):
        scored = {epoch: maps.score for epoch, maps in enumerate(found[:number]) if not math.isnan(maps.score)}
        best = (min if mode == "min" else max)(scored, key=scored.get) if scored else 0  # type: ignore[arg-type]
        for reference, epoch in {"previous": number - 1, "first": 0, "best": best}.items():
            expected = means(found[number], found[epoch])
            names = (f"spearman_{reference}", f"spearman_{reference}_unchanged", f"unchanged_{reference}")
            actual = [scalars[f"val/agcam/drift/{name}"] for name in names]
            assert actual == pytest.approx(expected, abs=1e-6, nan_ok=True)
            assert 0 < scalars[f"val/agcam/drift/centroid_shift_{reference}"] < 1
        mirrored = PanelMaps(**{**vars(found[number]), "maps": found[number].mirrored})
        expected_floor = means(found[number], mirrored)[0]
        assert scalars["val/agcam/drift/spearman_floor"] == pytest.approx(expected_floor, abs=1e-6)
        assert scalars["val/agcam/drift/degenerate"] == 0
        assert 0 < scalars["val/agcam/drift/gini"] < 1
    assert found[2].predictions.tolist() != found[0].predictions.tolist(), "the two rows would be one"


def panel(epoch: int, maps: Any, predictions: Sequence[int] = (1, 2, 3), score: float = math.nan) -> PanelMaps:
    """Three images by hand."""
    places, targets = np.array([0, 4, 7]), np.array([1, 2, 3])
    return PanelMaps(
        epoch, ("a", "b", "c"), places, targets, np.array(predictions), np.asarray(maps, np.float16), None, score
    )


def test_degenerate_maps_are_counted_and_left_out_of_the_means() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.random((2, 3, 4, 4))
    other[1], other[2, 0, 0] = 0, np.nan
    compared = compare(panel(1, other), {"first": panel(0, one, (1, 9, 9))})
    scalars = compared.scalars(list(SIMILARITIES))
    assert scalars["degenerate"] == 2
    expected = spearmanr(one[0].astype(np.float16).ravel(), other[0].astype(np.float16).ravel()).statistic
    assert float(scalars["spearman_first"]) == pytest.approx(expected)
    assert float(scalars["spearman_first_unchanged"]) == pytest.approx(expected)
    assert float(scalars["unchanged_first"]) == pytest.approx(1 / 3)
    assert not any("floor" in name for name in scalars)
    assert math.isfinite(scalars["gini"])


def test_the_best_epoch_is_that_of_the_best_score_and_before_any_the_first() -> None:
    maps = np.random.default_rng(0).random((3, 4, 4))
    scores = [math.nan, 0.4, 0.9, math.nan, 0.7]
    history = [panel(epoch, maps, score=score) for epoch, score in enumerate(scores)]

    def best(count: int, mode: Any) -> int:
        return references_of(history[:count], mode)["best"].epoch

    assert [best(count, "max") for count in range(1, 6)] == [0, 1, 2, 2, 2]
    assert [best(count, "min") for count in range(1, 6)] == [0, 1, 1, 1, 1]
    assert set(references_of(history, None)) == {"previous", "first"}
    assert references_of([], "max") == {}


def test_without_a_monitor_there_is_no_best_epoch_and_without_floor_no_floor(tmp_path: Path) -> None:
    history = fit(tmp_path, unscored(monitor=None, floor=False), max_epochs=1)
    names = {name.removeprefix("val/agcam/drift/") for name in history.scalars[0] if "/drift/" in name}
    kinds = {f"spearman_{reference}{row}" for reference in ("previous", "first") for row in ("", "_unchanged")}
    assert names == {*kinds, "unchanged_previous", "unchanged_first", "gini", "degenerate"}
    assert all(maps.mirrored is None and maps.mode is None for maps in read_history(folder_of(tmp_path)))


def test_a_checkpoint_can_be_chosen_by_the_drift(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "least", "val/agcam/drift/spearman_first", mode="min")
    history = fit(tmp_path, [unscored(), checkpoint], enable_checkpointing=True)
    least = min(scalars["val/agcam/drift/spearman_first"] for scalars in history.scalars)
    assert float(checkpoint.best_model_score) == pytest.approx(least)


# Side effects.


def outcome(folder: Path, callbacks: list[L.Callback], workers: int = 0, **options: Any) -> dict[str, Any]:
    """Everything that a run leaves; mixup, dropout and drop path make random numbers count."""
    L.seed_everything(0, workers=True, verbose=False)
    rates = {"pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_rate": 0.1}
    module = tiny_classifier(rates, drop_path=0.2, mixup=0.4, lr=0.01)
    history = History()
    data = digits(num_train=16)
    data.num_workers = workers
    trainer = make_trainer(folder, [history, *callbacks], **{"max_epochs": 2, **options})
    trainer.fit(module, data)
    assert_left_alone(module)
    state = list(module.state_dict().values())
    [optimizer] = trainer.optimizers
    state += [value for values in optimizer.state.values() for value in values.values()]
    numbers = [*history.losses, *(value for s in history.scalars for k, value in s.items() if k.count("/") == 1)]
    drawn = [torch.rand(4), torch.from_numpy(np.random.rand(4)), random.random()]  # noqa: NPY002
    return {"state": state, "numbers": numbers, "drawn": drawn}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_a_run_with_it_is_bit_for_bit_the_run_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, sanity_steps: int
) -> None:
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # so that monkeypatch restores them
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    runs = [
        outcome(tmp_path, callbacks, workers, num_sanity_val_steps=sanity_steps)
        for callbacks in ([], [DriftMonitor(num_images=6), DriftMonitor("rollout", num_images=3)])
    ]
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    random.setstate(state[2])
    alone, watched = runs
    assert len(alone["numbers"]) > 8
    assert alone["numbers"] == watched["numbers"]
    for part in ("state", "drawn"):
        for one, other in zip(alone[part], watched[part], strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_outside_of_a_fit_it_does_nothing(tmp_path: Path) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [unscored()])
    trainer.validate(module, loader(), verbose=False)
    trainer.test(module, loader(), verbose=False)
    assert not [name for name in logged(trainer) if "drift" in name]
    assert not list(tmp_path.rglob("*.npz"))


def test_fast_dev_run_writes_nothing_and_logs_all_the_same(tmp_path: Path) -> None:
    history = fit(tmp_path, unscored(), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.npz")) + list(tmp_path.rglob("*.png"))
    assert "val/agcam/drift/spearman_first" in history.scalars[0]


def test_without_validation_it_does_nothing(tmp_path: Path) -> None:
    make_trainer(tmp_path, [unscored()], limit_val_batches=0).fit(UserModule(), loader(8), loader())
    assert not list(tmp_path.rglob("*.npz"))


def test_it_stands_beside_other_monitors_and_shares_their_maps(tmp_path: Path) -> None:
    monitors = [unscored(), unscored(explainer="rollout", monitor="val/agcam/iou"), LocalizationMonitor()]
    scalars = fit(tmp_path, monitors).scalars[-1]
    assert {"val/agcam/iou", "val/agcam/drift/gini", "val/rollout/drift/gini"} <= scalars.keys()
    scores = [maps.score for maps in read_history(tmp_path / "drift" / "rollout")]
    assert scores[-1] == pytest.approx(scalars["val/agcam/iou"])


# Resuming.


def saved_run(path: Path, epochs: int, ckpt_path: Path | None = None, **options: Any) -> History:
    """A run that leaves last.ckpt; equal runs are equal bit for bit."""
    history = History()
    callbacks = [StepSeed(0), history, unscored(**options), ModelCheckpoint(path / "checkpoints", "last")]
    trainer = make_trainer(path, callbacks, max_epochs=epochs, enable_checkpointing=True)
    trainer.fit(UserModule(), loader(8), loader(), ckpt_path=ckpt_path, weights_only=True)
    return history


def drifts_of(history: History) -> list[dict[str, float]]:
    return [{name: value for name, value in s.items() if "drift" in name} for s in history.scalars]


@pytest.mark.parametrize("place", ["same", "other", "moved"])
def test_a_resumed_fit_continues_the_history_in_the_same_folder_in_another_and_after_a_move(
    tmp_path: Path, place: str
) -> None:
    whole = saved_run(tmp_path / "whole", 4)
    saved_run(tmp_path / "first", 2)
    first = tmp_path / "first"
    if place == "moved":
        first = first.rename(tmp_path / "elsewhere")
    second = first if place == "same" else tmp_path / "second"
    resumed = saved_run(second, 4, first / "checkpoints" / "last.ckpt")
    assert len(resumed.scalars) == 2
    for scalars, uninterrupted in zip(drifts_of(resumed), drifts_of(whole)[2:], strict=True):
        assert scalars == pytest.approx(uninterrupted, abs=0, nan_ok=True)
    expected, found = (read_history(folder_of(folder)) for folder in (tmp_path / "whole", second))
    assert [maps.epoch for maps in found] == [0, 1, 2, 3, 4]
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one.maps, other.maps)
        assert one.score == other.score or math.isnan(one.score)
    if place != "same":
        assert len(read_history(folder_of(first))) == 3, "the first run's folder stays as it was"


def test_epochs_after_the_checkpoint_are_removed_where_the_fit_goes_on_and_so_are_those_of_another_run(
    tmp_path: Path,
) -> None:
    saved_run(tmp_path, 2)
    checkpoint = (tmp_path / "checkpoints" / "last.ckpt").rename(tmp_path / "second.ckpt")
    saved_run(tmp_path, 4, checkpoint)
    saved_run(tmp_path, 3, checkpoint)
    assert [maps.epoch for maps in read_history(folder_of(tmp_path))] == [0, 1, 2, 3]
    saved_run(tmp_path, 1)
    assert [maps.epoch for maps in read_history(folder_of(tmp_path))] == [0, 1]


def test_lost_files_are_named_and_the_history_goes_on_from_the_model_as_it_is(tmp_path: Path) -> None:
    saved_run(tmp_path / "first", 2)
    (folder_of(tmp_path / "first") / "epoch_000.npz").unlink()
    with pytest.warns(UserWarning, match="no maps of epoch 0 in"):
        saved_run(tmp_path / "second", 3, tmp_path / "first" / "checkpoints" / "last.ckpt")
    assert [maps.epoch for maps in read_history(folder_of(tmp_path / "second"))] == [1, 2, 3]
    for file in folder_of(tmp_path / "first").glob("*.npz"):
        file.unlink()
    with pytest.warns(UserWarning, match="no maps of epoch 0, 1, 2 in"):
        saved_run(tmp_path / "third", 3, tmp_path / "first" / "checkpoints" / "last.ckpt")
    assert [maps.epoch for maps in read_history(folder_of(tmp_path / "third"))] == [2, 3]


def test_another_panel_is_refused_when_resuming(tmp_path: Path) -> None:
    saved_run(tmp_path, 1, num_images=4)
    with pytest.raises(InputError, match="num_images 5, but the checkpoint's history has 4: resume with the same"):
        saved_run(tmp_path, 2, tmp_path / "checkpoints" / "last.ckpt", num_images=5)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    fit(tmp_path, unscored(num_images=2), max_epochs=1)
    file = folder_of(tmp_path) / "epoch_001.npz"
    content = file.read_bytes()
    for damaged in (content[:-100], b"", b"text"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"epoch_001.npz is damaged or holds no maps of DriftMonitor: remove it"):
            read_history(folder_of(tmp_path))
    assert sorted(path.name for path in folder_of(tmp_path).iterdir() if path.suffix not in (".npz", ".png")) == []


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarities": ["cosine"]}, "similarities is 'cosine'; choose one of spearman, centred_pearson"),
        ({"mode": "best"}, "mode is 'best'; choose one of min, max"),
        ({"rows": 0}, "rows is 0; at least 1"),
        ({"columns": 1}, "columns is 1; at least 2"),
        ({"num_images": 0}, "num_images is 0; at least 1"),
        ({"colormap": "jett"}, "no colormap 'jett'"),
        ({"explainer": "gradcamm"}, "no explainer 'gradcamm'"),
    ],
)
def test_a_wrong_argument_is_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DriftMonitor(**arguments)


def test_a_value_that_is_not_logged_cannot_say_which_epoch_is_best(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"by 'val/accuracy', which is not logged: .* to one of val/loss"):
        fit(tmp_path, DriftMonitor(num_images=2))


def test_a_shuffled_validation_is_refused(tmp_path: Path) -> None:
    shuffled = DataLoader(Scenes(11), 4, shuffle=True, collate_fn=collate)
    with pytest.raises(InputError, match="the validation dataloader must not shuffle"):
        fit(tmp_path, unscored(), None, shuffled)


def test_two_of_the_same_method_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `DriftMonitor`"):
        fit(tmp_path, [unscored(), unscored(num_images=3)])


# Pictures.


def test_filmstrip_and_curves_lie_beside_the_maps_and_reach_tensorboard(tmp_path: Path) -> None:
    history = History()
    trainer = make_trainer(tmp_path, [history, unscored(rows=3)], tensorboard=True, max_epochs=2)
    trainer.fit(UserModule(), loader(8), loader())
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"images": 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["val/agcam/drift", "val/agcam/drift_curves"]
    assert len(events.Images("val/agcam/drift")) == 2
    strip = np.asarray(Image.open(folder_of(Path(trainer.log_dir)) / "drift.png"))
    assert strip.shape[:2] == (3 * (96 + 40) + 24, 4 * 100 + 4), "three images; the images, and epochs 0, 1 and 2"
    assert (folder_of(Path(trainer.log_dir)) / "drift_curves.png").is_file()


def test_the_filmstrip_shows_the_images_whose_maps_move_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(drift_figures, "draw_filmstrip", lambda *a: shown.append(a) or np.zeros((2, 2, 3), np.uint8))
    fit(tmp_path, unscored(rows=2), data=loader())
    found = read_history(folder_of(tmp_path))
    rho = [
        np.mean([spearmanr(a.maps[n].ravel(), b.maps[n].ravel()).statistic for a, b in zip(found, found[1:])])  # noqa: B905, RUF007
        for n in range(11)
    ]
    _, rows, images, notes, *_ = shown[-1]
    assert rows == np.argsort(rho)[:2].tolist()
    assert notes == [f"Spearman {rho[row]:.2f}" for row in rows]
    assert all(image.std() > 10 for image in images)
    assert not np.array_equal(images[0], images[1])


def test_the_predicted_class_is_green_where_it_is_right_and_red_where_not_and_epochs_are_thinned_out() -> None:
    generator = np.random.default_rng(0)
    names = ["zero", "one", "a very long name of a class indeed", "three"]
    history = [panel(epoch, generator.random((3, 4, 4)), (1, 2, 2)) for epoch in range(30)]
    images = [generator.integers(0, 255, (64, 80, 3), dtype=np.uint8) for _ in range(2)]
    strip = draw_filmstrip(history, [0, 2], images, ["a", "b"], names.__getitem__, Filmstrip(columns=12))
    assert strip.shape == (2 * 136 + 24, 13 * 100 + 4, 3)

    def has(part: Any, colour: tuple[int, int, int]) -> bool:
        return bool((part == np.array(colour, np.uint8)).all(-1).any())

    captions = [strip[24 + row * 136 + 96 : 24 + (row + 1) * 136, 104:] for row in range(2)]
    assert [has(captions[0], GREEN), has(captions[0], RED)] == [True, False]
    assert [has(captions[1], GREEN), has(captions[1], RED)] == [False, True]


def test_a_class_that_is_not_found_is_named_so_and_an_image_that_is_not_there_is_black(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(drift_figures, "draw_filmstrip", lambda *a: shown.append(a))
    maps = np.random.default_rng(0).random((2, 3, 4, 4))
    maps[:, 1] = 0
    history = [panel(epoch, maps[epoch], (1, -1, -1)) for epoch in range(2)]
    moving = moving_most(drifts := compare_all(history), 9)
    assert set(moving) == {0, 1, 2}
    assert list(moving)[2] == 1
    assert math.isnan(moving[1])
    white = np.full((8, 8, 3), 255, np.uint8)
    draw_drift(
        history, drifts, {0: 0.25, 2: 0.5}, {(7, 3): white}, lambda label: f"class {label}", "agcam", Filmstrip()
    )
    [(_, rows, images, notes, name, _)] = shown
    assert (rows, notes) == ([0, 2], ["Spearman 0.25", "Spearman 0.50"])
    assert [image.max() for image in images] == [0, 255]
    assert [name(-1), name(3)] == ["not found", "class 3"]


# Two processes.


def watched(folder: Path, world: int) -> list[dict[str, float]]:
    """What is logged by a fit over so many processes, of a module that learns nothing."""
    monitors = [unscored(num_images=5, rows=2), unscored(explainer="rollout", num_images=1)]
    strategy = {"strategy": "ddp", "devices": world} if world > 1 else {}
    history = History()
    trainer = make_trainer(folder, [history, *monitors], tensorboard=True, max_epochs=2, **strategy)
    trainer.fit(Frozen(), loader(8), loader(9, batch_size=1))
    return drifts_of(history)


def test_two_processes_log_and_write_what_one_does(tmp_path: Path) -> None:
    alone = watched(tmp_path / "one", 1)
    run_two_ranks(__file__, str(tmp_path / "two"))
    for rank in (0, 1):
        scalars = json.loads((tmp_path / f"two_{rank}.json").read_text())
        assert len(scalars) == 2
        for epoch, expected in zip(scalars, alone, strict=True):
            assert epoch == pytest.approx(expected, abs=1e-6, nan_ok=True)
    for explainer in ("agcam", "rollout"):
        one, two = (read_history(tmp_path / run / "run" / "drift" / explainer) for run in ("one", "two"))
        assert [maps.epoch for maps in two] == [0, 1, 2]
        for expected, found in zip(one, two, strict=True):
            assert (found.ids, found.keys) == (expected.ids, expected.keys)
            np.testing.assert_allclose(found.maps.astype(float), expected.maps, atol=2e-3)
        strips = [
            np.asarray(Image.open(tmp_path / run / "run" / "drift" / explainer / "drift.png"), dtype=int)
            for run in ("one", "two")
        ]
        assert strips[0].shape == strips[1].shape
        assert np.abs(strips[0] - strips[1]).mean() < 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    seen = watched(target, 2)
    target.with_name(f"{target.name}_{sys.argv[2]}.json").write_text(json.dumps(seen))
