"""LocalizationMonitor logs what one computes by hand, in every stage and under every way of training."""

import copy
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from lightning_cases import (
    History,
    UserModule,
    assert_logged,
    batches_of,
    digits,
    loader,
    localization_by_hand,
    logged,
    make_trainer,
    tiny_classifier,
    tiny_net,
    with_tag,
)

from litcam.callbacks import LocalizationMonitor
from litcam.explainers import list_explainers

CONTROLS_AND_METHODS = ("agcam", "rollout", "random", "center")


def boxes_and_masks() -> list[L.Callback]:
    """Monitors of four methods against boxes, and of one against masks."""
    return [*map(LocalizationMonitor, CONTROLS_AND_METHODS), LocalizationMonitor(regions="masks")]


def expected_of(net: Any, batches: list[Any], stage: str) -> dict[str, float]:
    """Every scalar that :func:`boxes_and_masks` should log."""
    scores: dict[str, float] = {}
    for method in CONTROLS_AND_METHODS:
        scores |= with_tag(f"{stage}/{method}/", localization_by_hand(net, batches, method))
    return scores | with_tag(f"{stage}/agcam/mask_", localization_by_hand(net, batches, kind="masks"))


def test_every_epoch_of_a_fit_logs_what_its_own_weights_give_by_hand(tmp_path: Path) -> None:
    history, data = History(), digits()
    make_trainer(tmp_path, [*boxes_and_masks(), history], max_epochs=2).fit(tiny_classifier(lr=0.05), data)
    assert len(history.scalars) == 2
    for scalars, net in zip(history.scalars, history.modules, strict=True):
        expected = expected_of(net, batches_of(data), "val")
        assert_logged(scalars, expected)
        assert {name for name in scalars if name.count("/") == 2} == set(expected), "and nothing else"
    assert history.scalars[0]["val/agcam/iou"] != history.scalars[1]["val/agcam/iou"]
    scores = {history.scalars[0][f"val/{method}/iou"] for method in CONTROLS_AND_METHODS}
    assert len(scores) == 4, "the methods differ, or a mix-up would not be noticed"


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validate_and_test_log_the_same_numbers_under_their_stage(tmp_path: Path, inference_mode: bool) -> None:
    module, data = tiny_classifier(), digits()
    trainer = make_trainer(tmp_path, boxes_and_masks(), inference_mode=inference_mode)
    trainer.validate(module, data, verbose=False)
    assert_logged(logged(trainer), expected_of(module.net.eval(), batches_of(data), "val"))
    trainer.test(module, data, verbose=False)
    assert_logged(logged(trainer), expected_of(module.net.eval(), batches_of(data, "test"), "test"))
    assert not any(name.startswith("val/") for name in logged(trainer))


def test_the_same_callbacks_serve_validate_then_fit_then_test(tmp_path: Path) -> None:
    module, monitor = UserModule(), LocalizationMonitor()
    trainer = make_trainer(tmp_path, [monitor])
    trainer.validate(module, loader(), verbose=False)
    trainer.fit(module, loader(), loader())
    assert_logged(logged(trainer), with_tag("val/agcam/", localization_by_hand(module.net.eval(), loader())))
    trainer.test(module, loader(7), verbose=False)
    assert_logged(logged(trainer), with_tag("test/agcam/", localization_by_hand(module.net.eval(), loader(7))))


# cam takes average-pooled models only, uniform has no map, and rise and score_cam take as many forwards here as ever.
@pytest.mark.parametrize("method", sorted(set(list_explainers()) - {"cam", "uniform", "rise", "score_cam"}))
def test_every_explainer_can_be_monitored_under_inference_mode(tmp_path: Path, method: str) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [LocalizationMonitor(method)])
    trainer.validate(module, loader(4), verbose=False)
    expected = localization_by_hand(module.net.eval(), loader(4), method)
    assert_logged(logged(trainer), with_tag(f"val/{method}/", expected))


@pytest.mark.parametrize(
    "net", [{"global_pool": "avg"}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}]
)
def test_other_readouts_are_monitored_in_a_fit_and_in_validate(tmp_path: Path, net: dict[str, Any]) -> None:
    module = UserModule(tiny_net(**net))
    trainer = make_trainer(tmp_path, [LocalizationMonitor()])
    trainer.fit(module, loader(), loader())
    expected = with_tag("val/agcam/", localization_by_hand(module.net.eval(), loader()))
    assert_logged(logged(trainer), expected)
    trainer.validate(module, loader(), verbose=False)
    assert_logged(logged(trainer), expected)


def test_the_options_of_an_explainer_reach_it(tmp_path: Path) -> None:
    module = UserModule()
    trainer = make_trainer(
        tmp_path, [LocalizationMonitor(explainer_options={"gradient": "full", "head_fusion": "max"})]
    )
    trainer.validate(module, loader(), verbose=False)
    by_hand = localization_by_hand(module.net.eval(), loader(), gradient="full", head_fusion="max")
    assert_logged(logged(trainer), with_tag("val/agcam/", by_hand))
    assert abs(by_hand["iou"] - localization_by_hand(module.net, loader())["iou"]) > 1e-4


def test_the_predicted_class_is_explained_on_request(tmp_path: Path) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [LocalizationMonitor(target="predicted")])
    trainer.validate(module, loader(), verbose=False)
    by_hand = localization_by_hand(module.net.eval(), loader(), target="predicted")
    assert_logged(logged(trainer), with_tag("val/agcam/", by_hand))
    assert abs(by_hand["iou"] - localization_by_hand(module.net, loader())["iou"]) > 1e-4


def labelled_by(net: Any, right: set[int]) -> list[Any]:
    """Batches whose labels are what the net predicts for the images ``right``, and other classes for all others."""
    batches = batches_of(loader())
    with torch.no_grad():
        for start, batch in zip(range(0, 11, 4), batches, strict=True):
            predicted = net(batch["image"]).argmax(1)
            wrong = torch.tensor([start + row not in right for row in range(len(predicted))])
            batch["label"] = (predicted + wrong.long()) % 10
    return batches


class Prepared:
    """A loader of given batches."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def test_wrong_predictions_are_counted_and_skipped_on_request(tmp_path: Path) -> None:
    net = tiny_net().eval()
    batches = labelled_by(net, right={0, 5, 6, 10})  # and none, two and one of a batch's images are skipped
    scores = {}
    for how in ("keep", "skip"):
        trainer = make_trainer(tmp_path, [LocalizationMonitor(wrong_predictions=how)])
        trainer.validate(UserModule(net), Prepared(batches), verbose=False)
        scores[how] = logged(trainer)
        assert scores[how]["val/agcam/wrong_predictions"] == 7
        by_hand = localization_by_hand(net, batches, skip_wrong=how == "skip")
        assert_logged(scores[how], with_tag("val/agcam/", by_hand))
    assert scores["keep"]["val/agcam/iou"] != scores["skip"]["val/agcam/iou"]


def test_skipping_every_image_logs_nan_and_goes_on(tmp_path: Path) -> None:
    net = tiny_net().eval()
    trainer = make_trainer(tmp_path, [LocalizationMonitor(wrong_predictions="skip")])
    trainer.validate(UserModule(net), Prepared(labelled_by(net, right=set())), verbose=False)
    assert logged(trainer)["val/agcam/wrong_predictions"] == 11
    assert math.isnan(logged(trainer)["val/agcam/iou"])


def test_maps_that_say_nothing_are_counted_and_in_no_mean(tmp_path: Path) -> None:
    module = UserModule()
    torch.nn.init.zeros_(module.net.head.weight)  # no gradient, no map
    trainer = make_trainer(tmp_path, [LocalizationMonitor(), LocalizationMonitor("center")])
    trainer.validate(module, loader(), verbose=False)
    scores = logged(trainer)
    assert (scores["val/agcam/degenerate"], scores["val/center/degenerate"]) == (11, 0)
    assert math.isnan(scores["val/agcam/iou"])
    assert not math.isnan(scores["val/center/iou"])


def test_a_subset_is_scored_by_itself(tmp_path: Path) -> None:
    module, monitor = UserModule(), LocalizationMonitor(num_images=4)
    chosen: set[int] = set()
    consume = monitor.consume

    def noting(explained: Any) -> None:
        chosen.update(explained.indices.tolist())
        consume(explained)

    monitor.consume = noting  # type: ignore[method-assign]
    trainer = make_trainer(tmp_path, [monitor, LocalizationMonitor("center")])
    trainer.validate(module, loader(batch_size=1), verbose=False)
    assert len(chosen) == 4
    subset = [batch for index, batch in enumerate(loader(batch_size=1)) if index in chosen]
    assert_logged(logged(trainer), with_tag("val/agcam/", localization_by_hand(module.net.eval(), subset)))
    everything = localization_by_hand(module.net.eval(), loader(batch_size=1), "center")
    assert_logged(logged(trainer), with_tag("val/center/", everything))


@pytest.mark.parametrize(("limit", "batches"), [(2, 2), (0.4, 1)])
def test_limit_val_batches_limits_what_is_scored(tmp_path: Path, limit: float, batches: int) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [LocalizationMonitor()], limit_val_batches=limit)
    trainer.fit(module, loader(), loader())
    by_hand = localization_by_hand(module.net.eval(), batches_of(loader())[:batches])
    assert_logged(logged(trainer), with_tag("val/agcam/", by_hand))


# Ways of training.


def test_mixed_precision_gives_the_numbers_of_full_precision_within_its_rounding(tmp_path: Path) -> None:
    module, data = tiny_classifier(), digits()
    trainer = make_trainer(tmp_path, boxes_and_masks(), precision="bf16-mixed")
    trainer.fit(module, data)
    expected = expected_of(module.net.eval(), batches_of(data), "val")
    continuous = {name: value for name, value in expected.items() if name.endswith(("energy_inside", "degenerate"))}
    assert_logged(logged(trainer), continuous, tolerance=0.01)
    assert not any(math.isnan(value) for name, value in logged(trainer).items() if name.startswith("val/"))
    assert_logged(logged(trainer), {name: expected[name] for name in expected if "/center/i" in name})


def test_a_frozen_backbone_is_explained_and_stays_without_gradients(tmp_path: Path) -> None:
    module, data = tiny_classifier(freeze_backbone=True), digits()
    trainer = make_trainer(tmp_path, [LocalizationMonitor()])
    trainer.fit(module, data)
    assert_logged(logged(trainer), with_tag("val/agcam/", localization_by_hand(module.net.eval(), batches_of(data))))
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    assert len(frozen) > 20
    assert all(parameter.grad is None for parameter in frozen)


def test_activation_checkpointing_stays_on_and_changes_no_number(tmp_path: Path) -> None:
    module = UserModule()
    module.net.set_grad_checkpointing(True)
    trainer = make_trainer(tmp_path, [LocalizationMonitor()])
    trainer.fit(module, loader(), loader())
    assert module.net.grad_checkpointing is True
    module.net.set_grad_checkpointing(False)
    assert_logged(logged(trainer), with_tag("val/agcam/", localization_by_hand(module.net.eval(), loader())))


@pytest.mark.parametrize("averaging", [WeightAveraging, EMAWeightAveraging])
@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_are_explained_where_averaged_weights_are_validated(
    tmp_path: Path, averaging: type[WeightAveraging], first: bool
) -> None:
    module, monitors, history = UserModule(), [LocalizationMonitor()], History()
    average = averaging(decay=0.5) if averaging is EMAWeightAveraging else averaging()
    callbacks: list[L.Callback] = [average, *monitors, history] if first else [*monitors, history, average]
    trainer = make_trainer(tmp_path, callbacks, max_epochs=2)
    raw: list[Any] = []
    module.on_validation_epoch_end = lambda: raw.append(copy.deepcopy(module.net).eval())  # type: ignore[method-assign]
    trainer.fit(module, loader(), loader())
    for scalars, net in zip(history.scalars, history.modules, strict=True):
        assert_logged(scalars, with_tag("val/agcam/", localization_by_hand(net, loader())))
    not_averaged = localization_by_hand(raw[-1], loader())
    assert abs(history.scalars[-1]["val/agcam/energy_inside"] - not_averaged["energy_inside"]) > 1e-6


def test_checkpoints_and_early_stopping_can_monitor_a_score(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(
        tmp_path, monitor="val/agcam/iou", mode="max", filename="{val/agcam/iou:.4f}", auto_insert_metric_name=False
    )
    stopping = EarlyStopping("val/center/energy_inside", mode="max", patience=2)  # a control: it never improves
    history = History()
    monitors = [LocalizationMonitor(), LocalizationMonitor("center")]
    trainer = make_trainer(
        tmp_path, [checkpoint, stopping, *monitors, history], max_epochs=9, enable_checkpointing=True
    )
    trainer.fit(tiny_classifier(lr=0.05), digits())
    scores = [scalars["val/agcam/iou"] for scalars in history.scalars]
    assert len(scores) == 3, "stopped after two epochs without improvement"
    assert len(set(scores)) > 1
    assert float(checkpoint.best_model_score) == pytest.approx(max(scores))
    best = history.modules[scores.index(max(scores))].state_dict()
    stored = torch.load(checkpoint.best_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(stored[f"net.{name}"], value) for name, value in best.items())


def test_a_resumed_run_logs_what_the_uninterrupted_one_logs(tmp_path: Path) -> None:
    straight, resumed = History(), History()
    every_epoch = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer = make_trainer(
        tmp_path, [LocalizationMonitor(), straight, every_epoch], max_epochs=2, enable_checkpointing=True
    )
    trainer.fit(tiny_classifier(lr=0.05), digits())
    trainer = make_trainer(tmp_path, [LocalizationMonitor(), resumed], max_epochs=2)
    trainer.fit(tiny_classifier(lr=0.05), digits(), ckpt_path=str(tmp_path / "epoch=0.ckpt"), weights_only=True)
    validation = [{name: v for name, v in scalars.items() if name.startswith("val/")} for scalars in straight.scalars]
    assert len(validation) == 2
    assert validation[0] != validation[1]
    [after_resuming] = resumed.scalars
    assert {name: after_resuming[name] for name in validation[1]} == validation[1]


def test_the_progress_bar_shows_one_number_of_methods_and_none_of_controls(tmp_path: Path) -> None:
    monitors = [LocalizationMonitor(), LocalizationMonitor("center"), LocalizationMonitor(regions="masks")]
    trainer = make_trainer(tmp_path, monitors)
    trainer.fit(UserModule(), loader(), loader())
    assert {name for name in trainer.progress_bar_metrics if name.startswith("val/")} == {"val/agcam/iou"}


def test_a_net_of_dynamic_size_is_scored_at_the_size_of_the_images(tmp_path: Path) -> None:
    module = UserModule(tiny_net(dynamic_img_size=True))
    trainer = make_trainer(tmp_path, [LocalizationMonitor()])
    trainer.validate(module, loader(4, size=96), verbose=False)
    by_hand = localization_by_hand(module.net.eval(), loader(4, size=96))
    assert_logged(logged(trainer), with_tag("val/agcam/", by_hand))
