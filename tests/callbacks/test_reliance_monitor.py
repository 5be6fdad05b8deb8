"""RelianceMonitor logs what one computes by hand, whatever the batches, and its figure reaches TensorBoard."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
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
    true_regions,
    with_tag,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from litcam.callbacks import LocalizationMonitor, RelianceMonitor
from litcam.callbacks.reliance_monitor import _spread, draw_reliance
from litcam.data import DigitScenesDataModule
from litcam.data.batch import collate
from litcam.errors import InputError
from litcam.metrics import Reliance

NAMES = (
    "accuracy",
    "accuracy_object",
    "accuracy_background",
    "probability",
    "probability_object",
    "probability_background",
    "reliance_object",
    "reliance_background",
    "relative_foreground_sensitivity",
)


def partners(labels: list[int]) -> list[int]:
    """For each image the last one of another class before it, or the first after it, looked for one by one."""
    found = []
    for index, label in enumerate(labels):
        order = [*reversed(range(index)), *range(index + 1, len(labels))]
        found.append(next(other for other in order if labels[other] != label))
    return found


def by_hand(net: Any, batches: Any, kind: str = "boxes", fill: Any = "swap") -> dict[str, float]:
    """What the monitor should log, by the names without tags; of all images at once."""
    batches = list(batches)
    images = torch.cat([batch["image"] for batch in batches])
    labels = torch.cat([batch["label"] for batch in batches])
    regions = torch.cat([true_regions(batch, kind) for batch in batches])
    partner = partners(labels.tolist())
    metric = Reliance(fill)
    metric.update(net, images, regions, labels, None, images[partner], regions[partner])
    scores = metric.compute()
    return {**{name: float(scores[name]) for name in NAMES}, "left_out": len(labels) - int(scores["num_images"])}


def assert_reliance(actual: dict[str, float], expected: dict[str, float], tolerance: float = 1e-5) -> None:
    """As assert_logged, but where the sensitivity is NaN by hand it is logged so."""
    nan = [name for name, value in expected.items() if math.isnan(value)]
    assert all(name.endswith("sensitivity") and math.isnan(actual[name]) for name in nan)
    assert_logged(actual, {name: value for name, value in expected.items() if name not in nan}, tolerance)


def monitors() -> list[RelianceMonitor]:
    """Of boxes and masks, and of every fill."""
    return [
        RelianceMonitor(num_images=None),
        RelianceMonitor("masks", num_images=None),
        RelianceMonitor(fill="mean", num_images=None),
        RelianceMonitor("masks", "blur", num_images=None),
    ]


def expected_of(net: Any, batches: list[Any], stage: str = "val") -> dict[str, float]:
    """Every scalar that :func:`monitors` should log."""
    tags = {
        "": ("boxes", "swap"),
        "mask_": ("masks", "swap"),
        "mean_": ("boxes", "mean"),
        "mask_blur_": ("masks", "blur"),
    }
    scores: dict[str, float] = {}
    for tag, how in tags.items():
        scores |= with_tag(f"{stage}/reliance/{tag}", by_hand(net, batches, *how))
    return scores


def test_every_epoch_of_a_fit_logs_what_its_own_weights_give_by_hand(tmp_path: Path) -> None:
    history, data = History(), digits()
    make_trainer(tmp_path, [*monitors(), history], max_epochs=2).fit(tiny_classifier(lr=0.05), data)
    assert len(history.scalars) == 2
    for scalars, net in zip(history.scalars, history.modules, strict=True):
        expected = expected_of(net, batches_of(data))
        assert_reliance(scalars, expected)
        assert {name for name in scalars if name.count("/") == 2} == set(expected), "and nothing else"
        probabilities = {
            scalars[f"val/reliance/{tag}probability_object"] for tag in ("", "mask_", "mean_", "mask_blur_")
        }
        assert len(probabilities) == 4, "the ways differ, or a mix-up would not be noticed"
    assert len({scalars["val/reliance/probability"] for scalars in history.scalars}) == 2


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validate_and_test_log_the_same_numbers_under_their_stage(tmp_path: Path, inference_mode: bool) -> None:
    module, data = tiny_classifier(), digits()
    trainer = make_trainer(tmp_path, monitors(), inference_mode=inference_mode)
    trainer.validate(module, data, verbose=False)
    assert_reliance(logged(trainer), expected_of(module.net.eval(), batches_of(data)))
    trainer.test(module, data, verbose=False)
    assert_reliance(logged(trainer), expected_of(module.net.eval(), batches_of(data, "test"), "test"))
    assert_left_alone(module)


@pytest.mark.parametrize("batch_size", [1, 3, 11])
def test_the_size_of_the_batches_changes_no_number(tmp_path: Path, batch_size: int) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [RelianceMonitor(num_images=None, batch_size=5)])
    trainer.validate(module, loader(batch_size=batch_size), verbose=False)
    assert_reliance(logged(trainer), with_tag("val/reliance/", by_hand(module.net.eval(), loader())))
    assert logged(trainer)["interval/val/reliance/num_images"] == 11


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_subset_of_fixed_images_is_scored_by_itself(tmp_path: Path, batch_size: int) -> None:
    module, monitor = UserModule(), RelianceMonitor(num_images=5)
    chosen: list[int] = []
    consume = monitor.consume
    monitor.consume = lambda explained: chosen.extend(explained.indices.tolist()) or consume(explained)  # type: ignore[method-assign]
    trainer = make_trainer(tmp_path, [monitor, LocalizationMonitor("center")])
    trainer.validate(module, loader(batch_size=batch_size), verbose=False)
    assert len(chosen) == 5
    subset = [batch for index, batch in enumerate(loader(batch_size=1)) if index in chosen]
    assert_reliance(logged(trainer), with_tag("val/reliance/", by_hand(module.net.eval(), subset)))


def test_images_without_a_region_are_left_out_and_counted(tmp_path: Path) -> None:
    class SomeWithout(Scenes):
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return sample if index % 3 else {**sample, "boxes": torch.zeros(0, 4)}

    trainer = make_trainer(tmp_path, [RelianceMonitor(num_images=None)])
    trainer.validate(UserModule(), DataLoader(SomeWithout(), 4, collate_fn=collate), verbose=False)
    assert logged(trainer)["val/reliance/left_out"] == 4
    assert logged(trainer)["interval/val/reliance/num_images"] == 7


def test_images_of_one_class_only_have_no_partner_and_leave_nan(tmp_path: Path) -> None:
    class OneClass(Scenes):
        def __getitem__(self, index: int) -> Any:
            return {**super().__getitem__(index), "label": 3}

    trainer = make_trainer(tmp_path, [RelianceMonitor(num_images=None)], tensorboard=True)
    trainer.validate(UserModule(), DataLoader(OneClass(), 4, collate_fn=collate), verbose=False)
    assert logged(trainer)["val/reliance/left_out"] == 11
    assert math.isnan(logged(trainer)["val/reliance/accuracy"])


def test_a_model_that_looks_at_the_cue_alone_is_seen_through(tmp_path: Path) -> None:
    """Its answer is the colour of the patch, which a planted cue gives away; the digit does not matter to it."""

    class SeesPatches(UserModule):
        data_config = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}  # noqa: RUF012

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch["image"])

        def forward(self, images: Tensor) -> Tensor:
            red, green, blue = (images[:, channel] for channel in range(3))
            pure_green = (green > 0.99) & (red < -0.99) & (blue < -0.99)  # the colour of class 3
            logits = 0 * self.net(images)
            logits[:, 3] += pure_green.flatten(1).float().mean(1) * 1000 - 5
            return logits

    data = DigitScenesDataModule(num_val=150, batch_size=50, num_workers=0, cue="patch")
    trainer = make_trainer(tmp_path, [RelianceMonitor(num_images=None)])
    trainer.validate(SeesPatches(), data, verbose=False)
    scores = logged(trainer)
    label = torch.cat([batch["label"] for batch in batches_of(data)])
    known = float(((label == 3) | (label == 0)).float().mean())  # without green it says 0
    assert scores["val/reliance/accuracy"] == pytest.approx(known, abs=0.02)
    assert scores["val/reliance/accuracy_background"] == pytest.approx(known, abs=0.02)
    assert scores["val/reliance/reliance_object"] == pytest.approx(0, abs=0.02)
    assert scores["val/reliance/accuracy_object"] < known - 0.08
    assert scores["val/reliance/relative_foreground_sensitivity"] < -0.3


def test_mixed_precision_gives_the_numbers_of_full_precision_within_its_rounding(tmp_path: Path) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [RelianceMonitor(num_images=None)], precision="bf16-mixed")
    trainer.validate(module, loader(), verbose=False)
    expected = with_tag("val/reliance/", by_hand(module.net.eval(), loader()))
    soft = {name: value for name, value in expected.items() if "probability" in name}
    assert_logged(logged(trainer), soft, tolerance=0.02)


def test_the_figure_is_in_tensorboard_and_the_run_folder_once_per_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [RelianceMonitor(), RelianceMonitor("masks")], tensorboard=True, max_epochs=3)
    module = UserModule()
    trainer.fit(module, loader(), loader())
    trainer.test(module, loader(), verbose=False)
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"images": 0}).Reload()
    tags = {f"{stage}/reliance/{kind}figure" for stage in ("val", "test") for kind in ("", "mask_")}
    assert set(events.Tags()["images"]) == tags
    assert [figure.step for figure in events.Images("val/reliance/figure")] == [2, 4, 6]
    files = {path.name for path in Path(trainer.log_dir, "figure", "reliance").iterdir()}
    assert files == {"epoch_001.png", "epoch_002.png", "epoch_003.png", "test.png"}


def test_a_resumed_run_draws_the_epochs_before_it(tmp_path: Path) -> None:
    straight, resumed = RelianceMonitor(), RelianceMonitor()
    others = RelianceMonitor("masks"), RelianceMonitor("masks")
    every_epoch = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = make_trainer(tmp_path, [straight, others[0], every_epoch], max_epochs=3, enable_checkpointing=True)
    trainer.fit(tiny_classifier(lr=0.05), digits())
    trainer = make_trainer(tmp_path, [resumed, others[1]], max_epochs=3)
    trainer.fit(tiny_classifier(lr=0.05), digits(), ckpt_path=str(tmp_path / "epoch=1.ckpt"), weights_only=True)
    assert [epoch["step"] for epoch in straight.history] == [2, 4, 6]
    for one, other in ((straight, resumed), (others[0], others[1])):
        for before, after in zip(one.history, other.history, strict=True):
            assert after == pytest.approx(before, nan_ok=True)
    assert straight.history[0]["probability_object"] != others[0].history[0]["probability_object"]


def scores_at(step: float, *values: float) -> dict[str, float]:
    names = ("accuracy", "accuracy_object", "accuracy_background")
    intervals = {f"{name}{end}": v for name, v in zip(names, values, strict=True) for end in ("_low", "_high")}
    return {"step": step, "num_images": 7, **dict(zip(names, values, strict=True)), **intervals}


def test_the_figure_shows_three_lines_named_at_their_ends() -> None:
    history = [scores_at(0, 0.1, 0.1, 0.1), scores_at(5, 0.9, 0.2, 0.88)]
    [axes] = draw_reliance(history, "masks", "blur").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.9], [0.1, 0.2], [0.1, 0.88]]
    names = {text.get_text(): text.xy[1] for text in axes.texts}
    assert set(names) == {"whole image 0.90", "object alone 0.20", "background alone 0.88"}
    assert names["whole image 0.90"] - names["background alone 0.88"] >= 0.069
    assert axes.get_title() == "reliance on the masks, blur: 7 images"


def test_one_validation_is_a_row_for_each_accuracy() -> None:
    [axes] = draw_reliance([scores_at(0, 0.9, 0.2, 0.88)]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["whole image", "object alone", "background alone"]
    assert [text.get_text() for text in axes.texts] == ["0.90", "0.20", "0.88"]


def test_names_stay_apart_and_inside() -> None:
    heights = _spread({"a": 1.0, "b": 0.99, "c": 0.98, "d": math.nan})
    assert sorted(heights.values()) == pytest.approx([0.86, 0.93, 1.0])
    assert _spread({"a": 0.1, "b": 0.1}) == pytest.approx({"a": 0.1, "b": 0.17})


# Refusals.


@pytest.mark.parametrize(("regions", "key"), [("boxes", "boxes"), ("masks", "mask")])
def test_batches_without_regions_are_refused_by_name(tmp_path: Path, regions: Any, key: str) -> None:
    module = UserModule()
    with pytest.raises(InputError, match=f"removes {regions}, but the batches have no '{key}'"):
        make_trainer(tmp_path, [RelianceMonitor(regions)]).fit(module, loader(pairs=True), loader(pairs=True))
    assert_left_alone(module)


def test_images_of_several_labels_are_refused(tmp_path: Path) -> None:
    data = DigitScenesDataModule(num_val=4, classes=2, batch_size=2, num_workers=0)
    with pytest.raises(InputError, match="the images have several labels; leave it out"):
        make_trainer(tmp_path, [RelianceMonitor()]).validate(tiny_classifier(multi_label=True), data, verbose=False)


def test_masks_of_another_size_than_the_images_are_refused(tmp_path: Path) -> None:
    class Halved(Scenes):
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return {**sample, "mask": sample["mask"][::2, ::2]}

    data = DataLoader(Halved(), 4, collate_fn=collate)
    with pytest.raises(InputError, match=r"\[4, 3, 64, 64\].*\[4, 32, 32\]"):
        make_trainer(tmp_path, [RelianceMonitor("masks", num_images=None)]).validate(UserModule(), data, verbose=False)


def test_two_monitors_that_would_log_under_the_same_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Two RelianceMonitors would log under the same names, val/reliance/"):
        make_trainer(tmp_path, [RelianceMonitor(), RelianceMonitor(num_images=3)]).fit(tiny_classifier(), digits())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regions": "boxs"}, "regions is 'boxs'; choose one of boxes, masks"),
        ({"fill": "noise"}, "fill is 'noise'; choose one of swap, mean, blur"),
        ({"num_images": 0}, "num_images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
    ],
)
def test_options_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RelianceMonitor(**arguments)


# Monitoring changes nothing.


def test_a_run_with_it_is_the_run_without_it(tmp_path: Path) -> None:
    losses, weights = [], []
    for callbacks in ([], monitors()):
        history, module = History(), tiny_classifier(lr=0.01)
        torch.manual_seed(0)
        make_trainer(tmp_path, [*callbacks, history], max_epochs=2).fit(module, digits(num_train=16))
        losses.append(history.losses)
        weights.append(module.state_dict())
        assert_left_alone(module)
    assert losses[0] == losses[1]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
