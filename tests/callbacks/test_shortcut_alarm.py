"""ShortcutAlarm logs what one computes image by image, names the images, and speaks when a model cheats, not before.

As a script it is one of two processes, which find each other by Lightning's environment variables.
"""

import functools
import json
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger
from lightning_cases import (
    History,
    Scenes,
    UserModule,
    assert_left_alone,
    assert_logged,
    batches_of,
    digits,
    loader,
    logged,
    make_trainer,
    tiny_classifier,
    tiny_net,
    true_regions,
)
from scipy.stats import rankdata
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from two_ranks import run_two_ranks

import litcam
from cli_cases import ROOT, SMALL_RUN
from litcam.callbacks import LocalizationMonitor, ShortcutAlarm
from litcam.callbacks.calibration import read_sound_runs
from litcam.callbacks.shortcut_report import draw_levels
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule, class_regions, present_classes
from litcam.data.batch import collate
from litcam.errors import InputError
from litcam.metrics.functional.reliance import object_and_background

POINTING, SENSITIVITY, PROFILE = "pointing_game", "relative_foreground_sensitivity", "positional_profile"


# What it should log, image by image.


def lift_by_hand(heatmap: Tensor, region: Tensor) -> float:
    """(ΣbM/ΣM)/a of what speaks for the class in a map [gh, gw]; NaN if nothing does."""
    size = (region.shape[0], region.shape[1])
    enlarged = F.interpolate(heatmap.clamp(min=0)[None, None], size=size, mode="bilinear")[0, 0]
    if enlarged.max() == enlarged.min():
        return math.nan
    values = ((enlarged - enlarged.min()) / (enlarged.max() - enlarged.min())).double()
    return float(values[region].sum() / values.sum() / region.double().mean())


def pointing_by_hand(heatmap: Tensor, region: Tensor) -> float:
    """Of the highest pixels of what speaks for the class the share on the object; NaN if nothing speaks for it."""
    size = (region.shape[0], region.shape[1])
    enlarged = F.interpolate(heatmap.clamp(min=0)[None, None], size=size, mode="bilinear")[0, 0]
    highest = [
        bool(on) for value, on in zip(enlarged.flatten(), region.flatten(), strict=True) if value == enlarged.max()
    ]
    return math.nan if enlarged.max() == enlarged.min() else sum(highest) / len(highest)


def profile_by_hand(maps: Sequence[Tensor], labels: Sequence[int]) -> float:
    """The largest z of any class and token."""
    scaled = [((one - one.min()) / (one.max() - one.min())).half().flatten() for one in maps]
    places = np.array([(rankdata(one.float().numpy()) - 1) / (len(one) - 1) for one in scaled])
    largest = -math.inf
    for label in set(labels):
        mine = places[[index for index, other in enumerate(labels) if other == label]]
        for token in range(places.shape[1]):
            error = places[:, token].std() / math.sqrt(len(mine))
            largest = max(largest, (mine[:, token].mean() - places[:, token].mean()) / error)
    return float(largest)


def partner_of(place: int, labels: Sequence[int]) -> int:
    """The last image of another class before it, or the first after it."""
    before, after = range(place - 1, -1, -1), range(place + 1, len(labels))
    return next(other for other in [*before, *after] if labels[other] != labels[place])


@dataclass
class Expected:
    """By hand, of a model on images: the scalars, and by image why it is right for the wrong reason."""

    scalars: dict[str, float]
    reasons: dict[int, tuple[bool, bool]]  # by the map, by the reliance; of those with one of them
    lifts: dict[int, float]
    probabilities: dict[int, list[float]]


def by_hand(
    net: nn.Module,
    dataset: Dataset[Any],
    explainer: str = "agcam",
    kind: str = "boxes",
    places: Sequence[int] | None = None,
) -> Expected:
    """One image after the other; ``places`` for some of them alone."""
    batches = [collate([dataset[place]]) for place in (range(len(dataset)) if places is None else places)]  # type: ignore[arg-type]
    method = litcam.create_explainer(explainer, net.eval())
    images, regions = [batch["image"] for batch in batches], [true_regions(batch, kind) for batch in batches]
    labels = [int(batch["label"]) for batch in batches]
    maps, hits, lifts, right, alone, probabilities = [], [], [], [], [], []
    for place, label in enumerate(labels):
        explanation = method(images[place], torch.tensor([label]))
        maps.append(explanation.heatmaps[0])
        hits.append(pointing_by_hand(maps[-1], regions[place][0]))
        lifts.append(lift_by_hand(maps[-1], regions[place][0]))
        partner = partner_of(place, labels)
        parts = object_and_background(images[place], regions[place], "swap", images[partner], regions[partner])
        with torch.no_grad():
            logits = [net(image)[0].double() for image in (images[place], *parts)]
        right.append(int(logits[0].argmax()) == label)
        alone.append([int(each.argmax()) == label for each in logits[1:]])
        probabilities.append([float(each.softmax(0)[label]) for each in logits])
    of_object, of_background = (sum(column) / len(labels) for column in zip(*alone, strict=True))
    mean = (of_object + of_background) / 2
    reasons = {}
    for index, (known, lift, (by_object, by_background)) in enumerate(zip(right, lifts, alone, strict=True)):
        why = (known and lift < 1, known and by_background and not by_object)
        if any(why):
            reasons[index if places is None else places[index]] = why
    scalars = {
        POINTING: float(np.nanmean(hits)),
        SENSITIVITY: (of_object - of_background) / (2 * min(mean, 1 - mean)) if 0 < mean < 1 else math.nan,
        PROFILE: profile_by_hand(maps, labels),
        "accuracy": sum(right) / len(labels),
        "wrong_reason": len(reasons) / len(labels),
    }
    return Expected(scalars, reasons, dict(enumerate(lifts)), dict(enumerate(probabilities)))


# Data and models.


@functools.cache
def predictions() -> list[int]:
    """What the tiny net says of the random scenes."""
    with torch.no_grad():
        logits = tiny_net().eval()(torch.stack([Scenes()[index]["image"] for index in range(11)]))
    return [int(label) for label in logits.argmax(1)]


class Known(Scenes):
    """Scenes of which the tiny net knows two in three."""

    def __getitem__(self, index: int) -> Any:
        sample = super().__getitem__(index)
        return {**sample, "label": predictions()[index] if index % 3 else (predictions()[index] + 1) % 10}


def known(batch_size: int = 4, count: int = 11) -> DataLoader[Any]:
    return DataLoader(Known(count), batch_size, collate_fn=collate)


class Coded(Dataset[Any]):
    """Images whose red square in the middle, the object, and green corner, the cue, have the colour of the label.

    The blue of the corner says by which of the two a :class:`Reader` goes. Pairs of images have the same.
    """

    def __init__(self, count: int = 13) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        label = index % 5
        image = 0.1 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index))
        image[0, 20:44, 20:44] = image[1, :8, :8] = label + 1
        image[2, :8, :8] = flag_of(index)
        mask = torch.zeros(64, 64, dtype=torch.uint8)
        mask[22:42, 22:42] = 1
        boxes = torch.tensor([[20.0, 20.0, 44.0, 44.0]])
        return {"image": image, "label": label, "boxes": boxes, "mask": mask, "id": f"image {index}"}


def flag_of(index: int) -> int:
    return index // 2 % 3


class Reader(UserModule):
    """Reads the label off the object, or off the cue in images whose flag the schedule has for the epoch."""

    def __init__(self, *schedule: set[int]) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, images: Tensor) -> Tensor:
        cheats = torch.tensor(sorted(self.schedule[self.current_epoch % len(self.schedule)]))
        by_cue = torch.isin(images[:, 2, 0, 0].round(), cheats)
        read = torch.where(by_cue, images[:, 1, 0, 0], images[:, 0, 32, 32]).round().long() - 1
        seen = torch.where((read >= 0) & (read < 5), read, 5)  # class 5 is what it cannot read
        return 0 * self.net(images)[:, :6] + 10 * F.one_hot(seen, 6)


ALL: set[int] = {0, 1, 2}
NONE: set[int] = set()


def coded(count: int = 13) -> DataLoader[Any]:
    return DataLoader(Coded(count), 4, collate_fn=collate)


def cheating(flags: set[int], count: int = 13) -> set[int]:
    """The images that a Reader is right on by the cue alone: it goes by it whole, and with another's background too."""
    labels = [index % 5 for index in range(count)]
    return {index for index in range(count) if flag_of(index) in flags and flag_of(partner_of(index, labels)) in flags}


SOUND = {POINTING: (0.9, 0.1), SENSITIVITY: (0.9, 0.1), PROFILE: (3.0, 0.5)}  # typical of the runs in the tests' tables


def sound_runs(path: Path, tag: str = "center/alarm/", count: int = 20, **others: tuple[float, float]) -> str:
    """The path of a table of sound runs with these typical values and deviations of statistics."""
    rng, centres = np.random.default_rng(0), {**SOUND, **others}
    path.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"run": np.repeat(np.arange(count), 2), f"val/{tag}accuracy": 0.9})
    for name, (typical, deviation) in centres.items():
        table[f"val/{tag}{name}"] = typical + deviation * rng.standard_normal(2 * count)
    table.to_csv(path / "sound_runs.csv", index=False)
    return str(path / "sound_runs.csv")


class Tables(L.Callback):
    """Keeps the logged scalars of every validation, and the table of images as it is then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.scalars: list[dict[str, float]] = []
        self.tables: list[pd.DataFrame] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.scalars.append(logged(trainer))
            self.tables.append(pd.read_csv(self.path, dtype={"id": str}))


def watch(folder: Path, module: L.LightningModule, alarm: ShortcutAlarm, epochs: int = 1, **options: Any) -> Tables:
    """A fit on coded images."""
    tables = Tables(folder / "alarm" / alarm.explainer / "images.csv")
    trainer = make_trainer(folder, [alarm, tables, *options.pop("callbacks", [])], max_epochs=epochs, **options)
    ckpt_path = options.pop("ckpt_path", None)
    trainer.fit(module, coded(8), coded(), ckpt_path=ckpt_path)
    return tables


def of_alarm(scalars: dict[str, float], tag: str = "val/center/alarm/") -> dict[str, float]:
    """What the alarm logged, by the names without the tag."""
    return {name.removeprefix(tag): value for name, value in scalars.items() if name.startswith(tag)}


def assert_scalars(found: dict[str, float], expected: Expected, names: Sequence[str] = (POINTING, SENSITIVITY)) -> None:
    """These scalars and no others; ranks of values that round alike may differ a little."""
    wanted = {name: expected.scalars[name] for name in (*names, "accuracy", "wrong_reason")}
    assert found.keys() - {"level"} == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=0.02 if name == PROFILE else 1e-5, nan_ok=True), name


# Scalars.


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_the_scalars_are_those_one_computes_image_by_image_whatever_the_batch_size(
    tmp_path: Path, batch_size: int
) -> None:
    alarms = [
        ShortcutAlarm(calibration=None, batch_size=5),
        ShortcutAlarm(regions="masks", calibration=None, num_images=None),
        ShortcutAlarm("evidence", reliance=False, calibration=None),  # whose maps speak against the class too
        ShortcutAlarm("rollout", regions=None, calibration=None),
    ]
    trainer = make_trainer(tmp_path, alarms)
    trainer.validate(UserModule(), known(batch_size), verbose=False)
    scalars, net, data = logged(trainer), tiny_net(), Known()
    expected = by_hand(net, data)
    assert 0 < expected.scalars["accuracy"] < 1
    assert 0 < expected.scalars["wrong_reason"] < expected.scalars["accuracy"]
    plain = of_alarm(scalars, "val/agcam/alarm/")
    masks = {name.removeprefix("mask_"): plain.pop(name) for name in list(plain) if name.startswith("mask_")}
    assert_scalars(plain, expected)
    assert_scalars(masks, by_hand(net, data, kind="masks"))
    assert masks[POINTING] != pytest.approx(plain[POINTING], abs=1e-3)
    of_evidence, of_rollout = by_hand(net, data, "evidence"), by_hand(net, data, "rollout")
    of_evidence.scalars["wrong_reason"] = sum(by_map for by_map, _ in of_evidence.reasons.values()) / 11
    of_rollout.scalars["wrong_reason"] = 0
    assert_scalars(of_alarm(scalars, "val/evidence/alarm/"), of_evidence, [POINTING])
    assert_scalars(of_alarm(scalars, "val/rollout/alarm/"), of_rollout, [PROFILE])


def test_a_subset_of_fixed_images_is_watched_by_itself(tmp_path: Path) -> None:
    alarm = ShortcutAlarm(calibration=None, num_images=6, seed=3)
    chosen: list[int] = []
    consume = alarm.consume
    alarm.consume = lambda explained: chosen.extend(explained.indices.tolist()) or consume(explained)  # type: ignore[method-assign]
    trainer = make_trainer(tmp_path, [alarm, LocalizationMonitor("center")])
    trainer.validate(UserModule(), known(), verbose=False)
    assert len(chosen) == 6
    expected = by_hand(tiny_net(), Known(), places=chosen)
    assert_scalars(of_alarm(logged(trainer), "val/agcam/alarm/"), expected)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validate_and_test_log_under_their_stage_and_write_nothing(tmp_path: Path, inference_mode: bool) -> None:
    alarm = ShortcutAlarm("center", calibration=sound_runs(tmp_path / "sound"))
    trainer = make_trainer(tmp_path / "run", [alarm], inference_mode=inference_mode)
    module = Reader(ALL)
    trainer.validate(module, coded(), verbose=False)
    first = logged(trainer)
    trainer.test(module, coded(12), verbose=False)
    second = logged(trainer)
    assert of_alarm(first)[SENSITIVITY] == of_alarm(second, "test/center/alarm/")[SENSITIVITY] == -1
    assert of_alarm(first)["level"] > 1
    assert of_alarm(second, "test/center/alarm/")["level"] > 1
    assert not [name for name in second if name.startswith("val/center")]
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert alarm.spoken is None
    assert_left_alone(module)


def test_the_level_is_that_of_the_statistic_furthest_on_its_way(tmp_path: Path) -> None:
    table = sound_runs(tmp_path / "sound")
    for flags, speaks in ((NONE, False), ({1}, True), (ALL, True)):
        alarm = ShortcutAlarm("center", calibration=table)
        trainer = make_trainer(tmp_path, [alarm])
        trainer.validate(Reader(flags), coded(), verbose=False)
        found = of_alarm(logged(trainer))
        assert alarm.calibration is not None
        typical, limits = alarm.calibration.typical, alarm.calibration.limits
        ways = [(found[name] - typical[name]) / (limits[name] - typical[name]) for name in (POINTING, SENSITIVITY)]
        assert found["level"] == pytest.approx(max(ways), abs=1e-5)
        assert (found["level"] >= 1) == speaks


def test_it_costs_two_forwards_of_the_watched_images_and_without_reliance_none(tmp_path: Path) -> None:
    for reliance, expected in ((True, 33), (False, 11)):
        alarm = ShortcutAlarm("rollout", reliance=reliance, num_images=None)
        module, seen = UserModule(), []
        module.net.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        make_trainer(tmp_path, [alarm]).validate(module, known(), verbose=False)
        assert sum(seen) == expected


# The images that are right for the wrong reason.


def test_the_table_has_the_images_that_one_finds_by_hand_in_every_epoch(tmp_path: Path) -> None:
    history, tables = History(), Tables(tmp_path / "alarm" / "agcam" / "images.csv")
    alarms = [ShortcutAlarm(calibration=None), tables, history]
    module = UserModule()
    trainer = make_trainer(tmp_path, alarms, max_epochs=4)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.01)  # type: ignore[method-assign]
    trainer.fit(module, known(), known())
    since: dict[int, int] = {}
    changes = []
    for epoch, (net, table, scalars) in enumerate(zip(history.modules, tables.tables, tables.scalars, strict=True), 1):
        expected = by_hand(net, Known())
        assert_scalars(of_alarm(scalars, "val/agcam/alarm/"), expected)
        since = {place: since.get(place, epoch) for place in expected.reasons}
        changes.append(set(since))
        assert table["place"].tolist() == sorted(since, key=lambda place: (since[place], place))
        for row in table.to_dict("records"):
            place = row["place"]
            assert (row["by_map"], row["by_reliance"]) == expected.reasons[place]
            label = Known()[place]["label"]
            assert (row["id"], row["label"], row["label_name"]) == (str(place), label, label)
            assert row["since_epoch"] == since[place]
            assert row["energy_lift"] == pytest.approx(expected.lifts[place], abs=1e-5)
            names = ("probability", "probability_object", "probability_background")
            assert [row[name] for name in names] == pytest.approx(expected.probabilities[place], abs=1e-5)
    assert len({frozenset(places) for places in changes}) > 1, "the images change, or since would prove nothing"
    assert len(set(since.values())) > 1, "some have been so for longer than others"
    by_map, by_reliance = (tables.tables[0][name].tolist() for name in ("by_map", "by_reliance"))
    assert any(by_map)
    assert by_map != by_reliance


def test_since_is_the_first_epoch_of_an_unbroken_row(tmp_path: Path) -> None:
    schedule = [NONE, {0, 1}, {0, 1, 2}, {1, 2}, {0, 1, 2}]
    tables = watch(tmp_path, Reader(*schedule), ShortcutAlarm("center", calibration=None), 5)
    since: dict[int, int] = {}
    for epoch, (flags, table) in enumerate(zip(schedule, tables.tables, strict=True), 1):
        since = {index: since.get(index, epoch) for index in cheating(flags)}
        assert dict(zip(table["place"], table["since_epoch"], strict=True)) == since
        assert table["id"].tolist() == [f"image {place}" for place in table["place"]]
        assert not table["by_map"].any()
        assert table["by_reliance"].all()
        assert list(zip(table["since_epoch"], table["place"], strict=True)) == sorted(
            zip(table["since_epoch"], table["place"], strict=True)
        )
    assert tables.tables[0].empty
    assert set(since.values()) == {2, 3, 5}


def test_the_names_of_the_classes_are_those_of_the_data_module(tmp_path: Path) -> None:
    class Named(DigitScenesDataModule):
        class_names = [f"digit {label}" for label in range(10)]  # noqa: RUF012

    module, data = tiny_classifier(lr=0.0), Named(8, 40, batch_size=8, num_workers=0)
    make_trainer(tmp_path, [ShortcutAlarm("random", reliance=False, calibration=None, num_images=30)]).fit(module, data)
    table = pd.read_csv(tmp_path / "alarm" / "random" / "images.csv")
    assert len(table)
    assert table["label_name"].tolist() == [f"digit {label}" for label in table["label"]]
    assert "probability" not in table
    names = [name for batch in batches_of(data) for name in batch["id"]]
    assert table["id"].tolist() == [names[place] for place in table["place"]]


# It speaks.


def test_a_model_that_goes_by_the_cue_raises_the_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alarm = ShortcutAlarm("center", calibration=sound_runs(tmp_path / "sound"))
    tables = watch(tmp_path, Reader(NONE, ALL), alarm, 2)
    honest, cheats = (of_alarm(scalars) for scalars in tables.scalars)
    assert (honest[SENSITIVITY], cheats[SENSITIVITY]) == (1, -1)
    assert (honest["accuracy"], cheats["accuracy"]) == (1, 1)
    assert (honest["wrong_reason"], cheats["wrong_reason"]) == (0, 1)
    assert honest["level"] < 1 <= cheats["level"]
    assert alarm.calibration is not None
    limit = alarm.calibration.limits[SENSITIVITY]
    words = (
        "Shortcut alarm after epoch 2: the model is right on 100% of the backgrounds alone, on 0% of the objects alone "
        f"(relative foreground sensitivity -1.00; 20 of 20 sound runs stay above {limit:.2f}); 13 of 13 images are "
        f"right for the wrong reason, 13 of them since epoch 2: see {tmp_path}/alarm/center/images.csv"
    )
    assert alarm.spoken == words
    assert [line for line in capsys.readouterr().out.splitlines() if "alarm" in line] == [words]


def test_an_honest_model_raises_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alarm = ShortcutAlarm("center", calibration=sound_runs(tmp_path / "sound"))
    tables = watch(tmp_path, Reader(NONE), alarm, 3)
    assert [of_alarm(scalars)["level"] < 1 for scalars in tables.scalars] == [True] * 3
    assert all(table.empty for table in tables.tables)
    assert alarm.spoken is None
    assert "alarm" not in capsys.readouterr().out


def test_maps_off_the_objects_raise_it_too_and_both_reasons_are_in_one_sentence(tmp_path: Path) -> None:
    table = sound_runs(tmp_path / "sound", pointing_game=(9.0, 0.3))
    for flags, also in ((NONE, False), (ALL, True)):
        alarm = ShortcutAlarm("center", calibration=table)
        watch(tmp_path, Reader(flags), alarm)
        assert alarm.calibration is not None
        assert alarm.spoken is not None
        assert "1: the maps of center point beside the objects (pointing game 1.00" in alarm.spoken
        assert f"20 of 20 sound runs stay above {alarm.calibration.limits[POINTING]:.2f})" in alarm.spoken
        assert (") and the model is right on 100% of the backgrounds" in alarm.spoken) == also
        assert ("; 0 of 13 images" in alarm.spoken) != also


def test_of_more_runs_than_needed_the_words_say_how_many_stay_within(tmp_path: Path) -> None:
    alarm = ShortcutAlarm("center", calibration=sound_runs(tmp_path / "sound", count=39))
    watch(tmp_path, Reader(ALL), alarm)
    assert alarm.spoken is not None
    assert "38 of 39 sound runs stay above" in alarm.spoken


@pytest.mark.parametrize(
    ("schedule", "printed"),
    [([NONE, ALL, NONE], [2]), ([ALL, NONE, ALL], [1, 3]), ([NONE, NONE, ALL], [3])],
)
def test_it_prints_the_first_time_and_at_the_end_if_the_words_have_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schedule: list[set[int]], printed: list[int]
) -> None:
    alarm = ShortcutAlarm("center", calibration=sound_runs(tmp_path / "sound"))
    watch(tmp_path, Reader(*schedule), alarm, 3)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Shortcut alarm")]
    assert [int(line.split(":")[0].split()[-1]) for line in said] == printed
    watch(tmp_path, Reader(NONE), alarm)
    assert "Shortcut alarm" not in capsys.readouterr().out, "what was said is not repeated after another fit"
    assert [past["step"] for past in alarm.history] == [2]


@pytest.mark.parametrize(("stop", "epochs"), [(True, 2), (False, 4)])
def test_it_ends_the_training_if_so_asked(tmp_path: Path, stop: bool, epochs: int) -> None:
    alarm = ShortcutAlarm("center", calibration=sound_runs(tmp_path / "sound"), stop=stop)
    assert len(watch(tmp_path, Reader(NONE, ALL), alarm, 4).scalars) == epochs


def test_an_accuracy_below_the_least_counts_as_no_validation(tmp_path: Path) -> None:
    """The Reader that cheats is right on all images; of the scenes the tiny net knows 7 of 11."""
    table = sound_runs(tmp_path / "sound", "agcam/alarm/", pointing_game=(9.0, 0.3))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="No artists")
        for least, speaks in ((0.63, True), (0.64, False)):
            alarm = ShortcutAlarm(calibration=table, min_accuracy=least)
            module = UserModule(tiny_net().requires_grad_(False))
            module.anchor = nn.Parameter(torch.zeros(()))
            module.training_step = lambda batch, index, module=module: 0 * module.anchor  # type: ignore[method-assign]
            trainer = make_trainer(tmp_path, [alarm])
            trainer.fit(module, loader(8), known())
            found = of_alarm(logged(trainer), "val/agcam/alarm/")
            assert found["accuracy"] == pytest.approx(7 / 11)
            assert (found["level"] >= 1, found["level"] == 0) == (speaks, not speaks)
            assert (alarm.spoken is not None) == speaks
            assert [set(past) for past in alarm.history] == [{"step", POINTING, SENSITIVITY} if speaks else {"step"}]


def test_without_calibration_it_logs_but_has_no_level_and_never_speaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alarm = ShortcutAlarm("center", calibration=None, stop=True)
    tables = watch(tmp_path, Reader(ALL), alarm, 2, callbacks=[])
    names = {POINTING, SENSITIVITY, "accuracy", "wrong_reason"}
    assert [set(of_alarm(scalars)) for scalars in tables.scalars] == [names, names]
    assert len(tables.tables[-1]) == 13
    assert (alarm.spoken, alarm.history) == (None, [])
    assert "alarm" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.png"))


def test_maps_that_say_nothing_leave_nan_and_the_reliance_speaks_alone(tmp_path: Path) -> None:
    """The gradients of a Reader are zero, and so are the maps of saliency."""
    alarm = ShortcutAlarm("saliency", calibration=sound_runs(tmp_path / "sound", "saliency/alarm/"))
    tables = watch(tmp_path, Reader(ALL), alarm)
    found = of_alarm(tables.scalars[0], "val/saliency/alarm/")
    assert math.isnan(found[POINTING])
    assert found["level"] > 1
    assert not tables.tables[0]["by_map"].any()
    assert alarm.spoken is not None
    assert "keep off" not in alarm.spoken


def test_images_without_object_or_background_have_no_part_in_lift_and_reliance(tmp_path: Path) -> None:
    class SomeWithout(Coded):
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            everything = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
            return sample if index % 3 else {**sample, "boxes": everything[: index % 2]}

    tables = Tables(tmp_path / "alarm" / "center" / "images.csv")
    trainer = make_trainer(tmp_path, [ShortcutAlarm("center", calibration=None), tables])
    trainer.fit(Reader(ALL), coded(8), DataLoader(SomeWithout(), 4, collate_fn=collate))
    assert tables.tables[0]["place"].tolist() == [index for index in range(13) if index % 3]
    found, region = of_alarm(tables.scalars[0]), torch.zeros(64, 64, dtype=torch.bool)
    region[20:44, 20:44] = True
    heatmap = litcam.create_explainer("center", tiny_net())(Coded()[0]["image"][None]).heatmaps[0]
    assert found[POINTING] == pytest.approx(pointing_by_hand(heatmap, region), abs=1e-5)
    assert found[SENSITIVITY] == -1
    assert found["wrong_reason"] == pytest.approx(8 / 13)


# Without boxes, and of several labels.


def test_without_regions_the_positional_profile_is_watched_alone_on_pairs(tmp_path: Path) -> None:
    for typical, speaks in ((0.5, True), (30.0, False)):
        runs = sound_runs(tmp_path / "sound", "rollout/alarm/", positional_profile=(typical, 0.05))
        alarm = ShortcutAlarm("rollout", regions=None, calibration=runs, min_accuracy=0)
        trainer = make_trainer(tmp_path, [alarm])
        trainer.fit(UserModule(), loader(8, pairs=True), loader(pairs=True))
        found = of_alarm(logged(trainer), "val/rollout/alarm/")
        assert set(found) == {PROFILE, "accuracy", "wrong_reason", "level"}
        assert found["wrong_reason"] == 0
        assert alarm.calibration is not None
        limit, usual = alarm.calibration.limits[PROFILE], alarm.calibration.typical[PROFILE]
        assert found["level"] == pytest.approx((found[PROFILE] - usual) / (limit - usual), rel=1e-4)
        assert (found["level"] >= 1) == speaks
        if speaks:
            assert alarm.spoken is not None
            words = f"the maps of rollout favour a place that tells the class (positional profile {found[PROFILE]:.2f};"
            assert f"{words} 20 of 20 sound runs stay below {limit:.2f}); 0 of 11 images" in alarm.spoken
        else:
            assert alarm.spoken is None
    assert pd.read_csv(tmp_path / "alarm" / "rollout" / "images.csv").empty


def several_labels() -> tuple[ViTClassifier, DigitScenesDataModule]:
    torch.manual_seed(0)
    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    module = ViTClassifier("vit_mini_patch8_64", 10, False, sizes, multi_label=True, lr=0.0)
    for parameter in module.net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.12)
    return module, DigitScenesDataModule(num_train=4, num_val=15, classes=2, batch_size=4, num_workers=0)


@pytest.mark.parametrize("regions", ["boxes", "masks"])
def test_of_several_labels_each_class_of_an_image_counts_by_itself(tmp_path: Path, regions: Any) -> None:
    module, data = several_labels()
    trainer = make_trainer(tmp_path, [ShortcutAlarm("random", regions=regions, reliance=False, calibration=None)])
    trainer.fit(module, data)
    data.batch_size = 15
    batch = data.normalize(next(iter(data.val_dataloader())))
    classes = present_classes(batch)
    painted = class_regions(batch, classes, regions)
    explanation = litcam.create_explainer("random", module.eval())(batch["image"], classes)
    hits, lifts, found, wrong = [], [], [], []
    for image in range(15):
        for position, label in enumerate(classes[image].tolist()):
            hits.append(pointing_by_hand(explanation.heatmaps[image, position], painted[image, position]))
            lifts.append(lift_by_hand(explanation.heatmaps[image, position], painted[image, position]))
            found.append(bool(explanation.logits[image, label] > 0))
            if found[-1] and lifts[-1] < 1:
                wrong.append((image, label))
    prefix = "mask_" if regions == "masks" else ""
    scalars = of_alarm(logged(trainer), f"val/random/alarm/{prefix}")
    assert scalars.keys() == {POINTING, "accuracy", "wrong_reason"}
    assert scalars[POINTING] == pytest.approx(np.nanmean(hits), abs=1e-5)
    assert scalars["accuracy"] == pytest.approx(sum(found) / 30)
    assert scalars["wrong_reason"] == pytest.approx(len(wrong) / 30)
    table = pd.read_csv(tmp_path / "alarm" / "random" / f"{prefix}images.csv")
    assert list(zip(table["place"], table["label"], strict=True)) == wrong
    assert 0 < len(wrong) < sum(found)


# Its history: figure, words and checkpoint.


def test_figure_and_words_are_in_tensorboard_and_the_figure_in_the_run_folder(tmp_path: Path) -> None:
    table = sound_runs(tmp_path / "sound")
    pd.read_csv(table).rename(columns=lambda name: name.replace("alarm/", "alarm/mask_")).to_csv(tmp_path / "m.csv")
    alarm = ShortcutAlarm("center", calibration=table)
    masks = ShortcutAlarm("center", regions="masks", calibration=str(tmp_path / "m.csv"))
    trainer = make_trainer(tmp_path, [alarm, masks], tensorboard=True, max_epochs=3)
    trainer.fit(Reader(NONE, ALL, ALL), coded(8), coded())
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"images": 0, "tensors": 0}).Reload()
    assert sorted(events.Tags()["images"]) == ["val/center/alarm", "val/center/mask_alarm"]
    assert [figure.step for figure in events.Images("val/center/alarm")] == [2, 4, 6]
    texts = {tag.removesuffix("/text_summary") for tag in events.Tags()["tensors"]}
    assert texts == {"val/center/alarm/words", "val/center/alarm/mask_words"}
    words = events.Tensors("val/center/alarm/words/text_summary")
    assert [event.step for event in words] == [4, 6]
    assert words[-1].tensor_proto.string_val[0].decode() == alarm.spoken
    assert masks.spoken is not None
    assert f"see {tmp_path}/run/alarm/center/mask_images.csv" in masks.spoken
    folder = Path(str(trainer.log_dir))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".png", ".csv")}
    pictures = {f"{name}/center/epoch_00{epoch}.png" for name in ("alarm", "mask_alarm") for epoch in (1, 2, 3)}
    assert files == pictures | {"alarm/center/images.csv", "alarm/center/mask_images.csv"}
    assert [past["step"] for past in alarm.history] == [2, 4, 6]


def test_words_reach_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path / 'mlflow_runs'}")
    alarm = ShortcutAlarm("center", calibration=sound_runs(tmp_path / "sound"))
    make_trainer(tmp_path, [alarm], logger=logger).fit(Reader(ALL), coded(8), coded())
    [text] = (tmp_path / "mlflow_runs").rglob("words.txt")
    assert text.read_text() == alarm.spoken
    assert text.parent.as_posix().endswith("artifacts/val/center/alarm")


def test_the_figure_has_a_line_for_each_statistic_and_a_gap_where_it_has_no_level() -> None:
    history = [{"step": 1.0}, {"step": 2.0, POINTING: 0.5, SENSITIVITY: math.nan}]
    history.append({"step": 5.0, POINTING: -3.0, SENSITIVITY: 7.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [axes] = draw_levels(history, "agcam").axes
        for empty in ([], [{"step": 1.0}], [{"step": 1.0, POINTING: math.nan}]):
            draw_levels(empty, "agcam").canvas.draw()
    lines = {str(line.get_label()): np.asarray(line.get_ydata(), dtype=float).tolist() for line in axes.lines[1:]}
    assert lines == {
        "pointing game": pytest.approx([math.nan, 0.5, -3], nan_ok=True),
        "relative foreground sensitivity": pytest.approx([math.nan, math.nan, 7], nan_ok=True),
    }
    assert [np.asarray(line.get_xdata()).tolist() for line in axes.lines[1:]] == [[1, 2, 5]] * 2
    low, high = axes.get_ylim()
    assert low < -3
    assert high > 7
    assert "agcam" in axes.get_title()


@pytest.mark.parametrize("schedule", [[ALL, ALL, {0, 1}, ALL], [NONE, ALL, NONE, NONE]])
def test_a_resumed_fit_keeps_history_and_since_and_does_not_repeat_the_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], schedule: list[set[int]]
) -> None:
    table = sound_runs(tmp_path / "sound")
    straight, resumed = (ShortcutAlarm("center", calibration=table) for _ in range(2))
    every_epoch = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = watch(tmp_path, Reader(*schedule), straight, 4, callbacks=[every_epoch], enable_checkpointing=True)
    capsys.readouterr()
    module = Reader(*schedule)
    tables = Tables(tmp_path / "again" / "alarm" / "center" / "images.csv")
    trainer = make_trainer(tmp_path / "again", [resumed, tables], max_epochs=4)
    trainer.fit(module, coded(8), coded(), ckpt_path=str(tmp_path / "epoch=1.ckpt"), weights_only=True)
    assert [past["step"] for past in straight.history] == [2, 4, 6, 8]
    for one, other in zip(straight.history, resumed.history, strict=True):
        assert one == pytest.approx(other)
    for one, other in zip(whole.tables[2:], tables.tables, strict=True):
        pd.testing.assert_frame_equal(one, other)
    assert straight.since == resumed.since
    assert straight.spoken is not None
    assert resumed.spoken is not None
    assert straight.spoken.split(": see")[0] == resumed.spoken.split(": see")[0]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Shortcut alarm")]
    assert said == ([] if schedule[3] == NONE else [resumed.spoken]), "at the end alone, if there is something new"


def test_two_alarms_have_each_their_own_state_in_a_checkpoint(tmp_path: Path) -> None:
    alarms = [ShortcutAlarm("center", regions=regions, calibration=None) for regions in ("boxes", "masks")]
    every_epoch = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = make_trainer(tmp_path, [*alarms, every_epoch], enable_checkpointing=True)
    trainer.fit(Reader(ALL), coded(8), coded())
    saved = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)["shortcut_alarm"]
    assert set(saved) == {"center/alarm/", "center/alarm/mask_"}
    assert saved["center/alarm/"]["since"] == [[index, index % 5, 1] for index in range(13)]


def test_fast_dev_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alarm = ShortcutAlarm("center", calibration=sound_runs(tmp_path / "sound"))
    trainer = make_trainer(tmp_path / "run", [alarm], fast_dev_run=True)
    trainer.fit(Reader(ALL), coded(8), coded())
    assert of_alarm(logged(trainer))["level"] > 1
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert alarm.spoken is not None
    assert "see" not in alarm.spoken
    assert alarm.spoken in capsys.readouterr().out


def test_the_sanity_check_leaves_nothing_behind(tmp_path: Path) -> None:
    tables = watch(tmp_path, Reader(ALL), ShortcutAlarm("center", calibration=None), num_sanity_val_steps=1)
    assert len(tables.tables[0]) == 13
    assert tables.tables[0]["since_epoch"].tolist() == [1] * 13


# Monitoring changes nothing.


def test_a_run_with_it_is_the_run_without_it(tmp_path: Path) -> None:
    losses, weights = [], []
    watching = [
        ShortcutAlarm(min_accuracy=0, false_alarms=0.9),
        ShortcutAlarm(regions="masks", calibration=None),
        ShortcutAlarm("evidence", regions=None),
        ShortcutAlarm("random", calibration=None),
    ]
    for callbacks in ([], watching):
        history, module = History(), tiny_classifier(lr=0.01)
        torch.manual_seed(0)
        make_trainer(tmp_path, [*callbacks, history], max_epochs=2).fit(module, digits(num_train=16))
        losses.append(history.losses)
        weights.append(module.state_dict())
        assert_left_alone(module)
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# Refusals.


@pytest.mark.parametrize(("regions", "key"), [("boxes", "boxes"), ("masks", "mask")])
def test_batches_without_regions_are_refused_with_the_remedy(tmp_path: Path, regions: Any, key: str) -> None:
    module = UserModule()
    with pytest.raises(InputError, match=f"with {regions}, but the batches have no '{key}'.*set its regions to null"):
        make_trainer(tmp_path, [ShortcutAlarm(regions=regions, calibration=None)]).fit(
            module, loader(pairs=True), loader(pairs=True)
        )
    assert_left_alone(module)


def test_the_reliance_of_images_of_several_labels_is_refused(tmp_path: Path) -> None:
    module, data = several_labels()
    with pytest.raises(InputError, match=r"ShortcutAlarm's reliance .* have several labels; leave it out"):
        make_trainer(tmp_path, [ShortcutAlarm(calibration=None)]).fit(module, data)


@pytest.mark.parametrize("other", [ShortcutAlarm(), ShortcutAlarm(regions=None)])
def test_two_alarms_that_would_log_under_the_same_names_are_refused(tmp_path: Path, other: ShortcutAlarm) -> None:
    with pytest.raises(InputError, match="Two ShortcutAlarms would log under the same names, val/agcam/alarm/"):
        make_trainer(tmp_path, [ShortcutAlarm(), other]).fit(tiny_classifier(), digits())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regions": "boxs"}, "regions is 'boxs'; choose one of boxes, masks"),
        ({"num_images": 0}, "num_images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"min_accuracy": 1.5}, r"min_accuracy is 1.5; it has to lie in \[0, 1\]"),
        ({"min_accuracy": -0.5, "calibration": None}, "min_accuracy is -0.5"),
        ({"false_alarms": 0.01}, r"false_alarms is 0.01, but \d+ sound runs .* can promise no less than 0.0"),
        ({"explainer": "random"}, "shipped with litcam has no val/random/alarm/.*it knows agcam"),
        ({"regions": "masks"}, "shipped with litcam has no val/agcam/alarm/mask_accuracy"),
        ({"calibration": ["nowhere"]}, "nowhere cannot be read"),
        ({"explainer": "gradcamm"}, "There is no explainer 'gradcamm'"),
    ],
)
def test_a_wrong_argument_is_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ShortcutAlarm(**arguments)


@pytest.mark.parametrize("explainer", ["agcam", "evidence", "legrad", "generic_attention", "rollout"])
def test_the_shipped_calibration_is_for_boxes_and_for_none(explainer: str) -> None:
    both, profile = ShortcutAlarm(explainer).calibration, ShortcutAlarm(explainer, regions=None).calibration
    assert both is not None
    assert profile is not None
    assert (set(both.limits), set(profile.limits)) == ({POINTING, SENSITIVITY}, {PROFILE})
    assert both.limits[POINTING] < both.typical[POINTING]
    assert both.limits[SENSITIVITY] < both.typical[SENSITIVITY]
    assert profile.limits[PROFILE] > profile.typical[PROFILE]
    alone = ShortcutAlarm(explainer, reliance=False).calibration
    assert alone is not None
    assert set(alone.limits) == {POINTING}


# The command line.


def test_the_command_line_takes_it_and_a_run_watched_so_calibrates_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from litcam import cli

    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler keeps an earlier test's stream
    monkeypatch.setattr(sys, "argv", ["train.py"])

    def train(name: str, *options: str) -> Path:
        saved = [f"--trainer.logger.init_args.save_dir={tmp_path}", f"--trainer.logger.init_args.name={name}"]
        alarm = ["--trainer.callbacks=litcam.callbacks.ShortcutAlarm", *options]
        cli.train(ROOT / "configs" / "digits.yaml", [*SMALL_RUN, *saved, "--trainer.max_epochs=2", *alarm])
        return tmp_path / name / "version_0"

    sound = train("sound", "--trainer.callbacks.calibration=null", "--trainer.callbacks.num_images=20")
    frame = pd.read_csv(sound / "history.csv")
    assert frame["epoch"].tolist() == [0, 1, 2]
    assert "val/agcam/alarm/level" not in frame
    names = [POINTING, "accuracy", "wrong_reason"]
    assert frame[[f"val/agcam/alarm/{name}" for name in names]].notna().all().all()
    [run] = read_sound_runs([str(sound)], "val/agcam/alarm/", [POINTING])
    assert [one[POINTING] for one in run] == pytest.approx(frame[f"val/agcam/alarm/{POINTING}"].tolist()[1:])
    capsys.readouterr()

    options = [f"calibration=[{sound},{sound}]", "min_accuracy=0", "false_alarms=0.5", "reliance=false"]
    watched = train("watched", *(f"--trainer.callbacks.{option}" for option in options))
    assert "val/agcam/alarm/level" in pd.read_csv(watched / "history.csv")
    assert (watched / "alarm" / "agcam" / "images.csv").is_file()
    assert (watched / "alarm" / "agcam" / "epoch_001.png").is_file()
    [saved] = yaml.safe_load((watched / "config.yaml").read_text())["trainer"]["callbacks"]
    assert saved["class_path"] == "litcam.callbacks.ShortcutAlarm"
    assert saved["init_args"]["calibration"] == [str(sound), str(sound)]
    capsys.readouterr()

    with pytest.raises(SystemExit) as stop:
        train("refused", "--trainer.callbacks.explainer=random")
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: The calibration shipped with litcam has no val/random/alarm/accuracy")
    assert not (tmp_path / "refused").exists()


# Two processes.


class Frozen(UserModule):
    """Learns nothing, so that runs with other batches keep the same weights."""

    def __init__(self) -> None:
        super().__init__(tiny_net().requires_grad_(False))
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images) * self.factor

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.factor], lr=0.0)


def seen_by(folder: Path, world: int) -> dict[str, Any]:
    """A fit over so many processes, which the alarm ends after the second epoch of three."""
    table = sound_runs(folder, "agcam/alarm/", pointing_game=(9.0, 0.3))

    class LateAlarm(ShortcutAlarm):
        """Does not listen in the first epoch."""

        def _speak(self, trainer: L.Trainer, pl_module: L.LightningModule, words: str) -> None:
            if trainer.current_epoch:
                super()._speak(trainer, pl_module, words)

    alarm, masks = LateAlarm(calibration=table, stop=True), ShortcutAlarm(regions="masks", calibration=None)
    profile = ShortcutAlarm("evidence", regions=None, calibration=None)
    history = History()
    strategy = {"strategy": "ddp", "devices": world} if world > 1 else {}
    trainer = make_trainer(folder, [history, alarm, masks, profile], tensorboard=True, max_epochs=3, **strategy)
    trainer.fit(Frozen(), loader(8), known(1))
    scalars = [{name: value for name, value in epoch.items() if "/alarm/" in name} for epoch in history.scalars]
    since = [[*key, epoch] for key, epoch in alarm.since.items()]
    return {"scalars": scalars, "history": alarm.history, "spoken": alarm.spoken, "since": since}


def test_two_processes_log_and_write_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    run_two_ranks(__file__, str(tmp_path / "two"))
    first, second = (json.loads((tmp_path / f"two_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first["scalars"]) == 2, "it has ended the training of both"
    boxes, masks = (by_hand(tiny_net(), Known(), kind=kind) for kind in ("boxes", "masks"))
    profile = by_hand(tiny_net(), Known(), "evidence")
    for scalars in first["scalars"]:
        found = of_alarm(scalars, "val/agcam/alarm/")
        of_masks = {name.removeprefix("mask_"): found.pop(name) for name in list(found) if name.startswith("mask_")}
        assert_scalars(found, boxes)
        assert_scalars(of_masks, masks)
        assert_logged(scalars, {f"val/evidence/alarm/{PROFILE}": profile.scalars[PROFILE]}, 0.02)
    labels = [Known()[place]["label"] for place in range(11)]
    assert first["since"] == [[place, labels[place], 1] for place in sorted(boxes.reasons)]
    assert [past["step"] for past in first["history"]] == [1, 2]
    table = pd.read_csv(tmp_path / "two" / "run" / "alarm" / "agcam" / "images.csv")
    assert table["place"].tolist() == sorted(boxes.reasons)
    for row in table.to_dict("records"):
        assert (row["by_map"], row["by_reliance"]) == boxes.reasons[row["place"]]
        names = ("probability", "probability_object", "probability_background")
        assert [row[name] for name in names] == pytest.approx(boxes.probabilities[row["place"]], abs=1e-5)
    assert f"{len(boxes.reasons)} of 11 images are right for the wrong reason" in first["spoken"]
    assert len(list((tmp_path / "two").rglob("events.out.tfevents*"))) == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    (target.parent / f"{target.name}_{sys.argv[2]}.json").write_text(json.dumps(seen_by(target, 2)))
