"""PerturbationMonitor logs what one computes by hand, and its figure reaches TensorBoard."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_cases import (
    History,
    UserModule,
    assert_logged,
    batches_of,
    digits,
    loader,
    logged,
    make_trainer,
    perturbation_by_hand,
    tiny_classifier,
    tiny_net,
    with_tag,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from litcam.callbacks import PerturbationMonitor
from litcam.callbacks.perturbation_monitor import draw_curves
from litcam.explainers import create_explainer
from litcam.metrics import Perturbation
from litcam.metrics.functional import PROTOCOLS

METHODS = ("agcam", "rollout", "random", "center")


def test_every_epoch_of_a_fit_logs_what_its_own_weights_give_by_hand(tmp_path: Path) -> None:
    history, data = History(), digits()
    monitors = [PerturbationMonitor(method, num_images=None) for method in METHODS]
    make_trainer(tmp_path, [*monitors, history], max_epochs=2).fit(tiny_classifier(lr=0.05), data)
    for scalars, net in zip(history.scalars, history.modules, strict=True):
        expected: dict[str, float] = {}
        for method in METHODS:
            expected |= with_tag(f"val/{method}/", perturbation_by_hand(net, batches_of(data), method))
        assert_logged(scalars, expected)
        assert {name for name in scalars if name.count("/") == 2} == set(expected), "and nothing else"
        assert len({scalars[f"val/{method}/abpc"] for method in METHODS}) == 4


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validate_and_test_log_the_same_numbers_under_their_stage(tmp_path: Path, inference_mode: bool) -> None:
    module, data = tiny_classifier(), digits()
    trainer = make_trainer(tmp_path, [PerturbationMonitor(num_images=None)], inference_mode=inference_mode)
    trainer.validate(module, data, verbose=False)
    expected = perturbation_by_hand(module.net.eval(), batches_of(data))
    assert_logged(logged(trainer), with_tag("val/agcam/", expected))
    trainer.test(module, data, verbose=False)
    expected = perturbation_by_hand(module.net.eval(), batches_of(data, "test"))
    assert_logged(logged(trainer), with_tag("test/agcam/", expected))


def test_the_predicted_class_is_explained_and_followed_on_request(tmp_path: Path) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [PerturbationMonitor(target="predicted", num_images=None)])
    trainer.validate(module, loader(pairs=True), verbose=False)
    by_hand = perturbation_by_hand(module.net.eval(), loader(), target="predicted")
    assert_logged(logged(trainer), with_tag("val/agcam/", by_hand))
    assert by_hand["lerf"] > perturbation_by_hand(module.net, loader())["lerf"]


@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_the_size_of_its_own_batches_changes_no_number(tmp_path: Path, batch_size: int) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [PerturbationMonitor(num_images=None, batch_size=batch_size)])
    trainer.validate(module, loader(4), verbose=False)
    assert_logged(logged(trainer), with_tag("val/agcam/", perturbation_by_hand(module.net.eval(), loader(4))))


def test_a_subset_of_fixed_images_is_scored(tmp_path: Path) -> None:
    history = History()
    monitors = [PerturbationMonitor(num_images=4), PerturbationMonitor("center", num_images=4)]
    numbers: list[int] = []
    for monitor in monitors:
        compute = monitor.metric.compute
        monitor.metric.compute = lambda compute=compute: numbers.append(int(compute()["num_images"])) or compute()  # type: ignore[method-assign]
    make_trainer(tmp_path, [*monitors, history], max_epochs=2).fit(UserModule(), loader(), loader(batch_size=1))
    assert numbers == [4] * 4, "four images in each of two epochs, for both"
    assert history.scalars[0]["val/agcam/lerf"] != history.scalars[1]["val/agcam/lerf"]


def test_mixed_precision_gives_the_numbers_of_full_precision_within_its_rounding(tmp_path: Path) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [PerturbationMonitor(num_images=None)], precision="bf16-mixed")
    trainer.validate(module, loader(), verbose=False)
    by_hand = perturbation_by_hand(module.net.eval(), loader())
    assert_logged(logged(trainer), with_tag("val/agcam/", by_hand), tolerance=0.02)


def test_a_model_without_maps_logs_nan_draws_an_empty_figure_and_goes_on(tmp_path: Path) -> None:
    module = UserModule()
    torch.nn.init.zeros_(module.net.head.weight)  # no gradient, no map
    trainer = make_trainer(tmp_path, [PerturbationMonitor(num_images=None)], tensorboard=True)
    trainer.validate(module, loader(), verbose=False)
    assert logged(trainer)["val/agcam/perturbation_degenerate"] == 11
    assert math.isnan(logged(trainer)["val/agcam/abpc"])
    events = EventAccumulator(str(trainer.log_dir)).Reload()
    assert events.Tags()["images"] == ["val/agcam/perturbation"]


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_dropout_is_off_while_pixels_are_removed(tmp_path: Path, global_pool: str) -> None:
    module = UserModule(tiny_net(global_pool=global_pool, drop_path_rate=0.5, proj_drop_rate=0.5))
    trainer = make_trainer(tmp_path, [PerturbationMonitor(num_images=None)])
    trainer.fit(module, loader(), loader())
    by_hand = perturbation_by_hand(module.net.eval(), loader())
    assert_logged(logged(trainer), with_tag("val/agcam/", by_hand))


def test_the_figure_is_in_tensorboard_once_per_epoch_under_one_tag(tmp_path: Path) -> None:
    monitors = [PerturbationMonitor(num_images=3), PerturbationMonitor("center", num_images=3)]
    trainer = make_trainer(tmp_path, monitors, tensorboard=True, max_epochs=3)
    trainer.fit(UserModule(), loader(), loader(pairs=True))
    trainer.test(UserModule(), loader(4, pairs=True), verbose=False)
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"images": 0}).Reload()
    tags = [f"{stage}/{method}/perturbation" for stage in ("val", "test") for method in ("agcam", "center")]
    assert sorted(events.Tags()["images"]) == sorted(tags)
    figures = events.Images("val/agcam/perturbation")
    assert [figure.step for figure in figures] == [2, 4, 6]
    assert len({figure.encoded_image_string for figure in figures}) == 3, "every epoch has another one"
    assert {f"val/{method}/abpc" for method in ("agcam", "center")} <= set(events.Tags()["scalars"])


def test_the_figure_shows_both_curves_and_the_area_between_them() -> None:
    lerf, morf = torch.linspace(0.9, 0.1, 11), torch.linspace(0.9, 0.1, 11) ** 3
    scores = {"lerf_curve": lerf, "morf_curve": morf, "lerf": lerf.mean(), "morf": morf.mean()}
    scores |= {"abpc": scores["lerf"] - scores["morf"], "num_images": torch.tensor(3)}
    [axes] = draw_curves(scores, "agcam").axes
    drawn = [line.get_ydata() for line in axes.lines]
    np.testing.assert_allclose(drawn, [lerf.numpy(), morf.numpy()])
    assert f"{float(scores['abpc']):.3f}" in axes.get_legend().get_texts()[0].get_text()
    assert "3 images" in axes.get_title()


@pytest.mark.parametrize(("protocol", "names"), [("chefer", ("positive", "negative")), ("road", ("lerf", "morf"))])
def test_another_protocol_logs_under_its_own_names(tmp_path: Path, protocol: str, names: tuple[str, ...]) -> None:
    normalisation: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    monitors = [
        PerturbationMonitor(num_images=None),
        PerturbationMonitor(num_images=None, protocol=protocol, **normalisation),
    ]
    module = UserModule()
    trainer = make_trainer(tmp_path, monitors, tensorboard=True)
    trainer.validate(module, loader(), verbose=False)
    metric, explainer = Perturbation(protocol, **normalisation), create_explainer("agcam", module.eval())
    before = 0
    for batch in loader():
        explanation = explainer(batch["image"], batch["label"])
        heatmaps = explanation.upsample((batch["image"].shape[-2], batch["image"].shape[-1]))
        places = torch.arange(before, before + len(heatmaps))  # in the dataset: they draw the intervals
        metric.update(metric.measure(module, batch["image"], heatmaps, batch["label"]).drawn_by(places))
        before += len(heatmaps)
    scores, scalars = metric.compute(), logged(trainer)
    for name in names:
        assert scalars[f"val/agcam/{protocol}_{name}"] == pytest.approx(float(scores[name]), abs=1e-5)
        for end in ("low", "high"):
            tag = f"interval/val/agcam/{protocol}_{name}_{end}"
            assert scalars[tag] == pytest.approx(float(scores[f"{name}_{end}"]), abs=1e-5)
    assert scalars[f"interval/val/agcam/{protocol}_num_images"] == 11
    assert "val/agcam/abpc" in scalars
    events = EventAccumulator(str(trainer.log_dir)).Reload()
    assert set(events.Tags()["images"]) == {"val/agcam/perturbation", f"val/agcam/{protocol}_perturbation"}


def test_a_figure_of_insertion_and_deletion_says_so() -> None:
    curve = torch.linspace(0, 1, 225)
    scores = {"deletion_curve": curve.flip(0), "insertion_curve": curve, "num_images": torch.tensor(3)}
    scores |= {"deletion": torch.tensor(0.5), "insertion": torch.tensor(0.5)}
    [axes] = draw_curves(scores, "agcam", PROTOCOLS["rise"]).axes
    assert [line.get_label() for line in axes.lines] == [
        "most relevant first 0.500",
        "most relevant inserted first 0.500",
    ]
    assert axes.get_xlabel() == "pixels inserted or removed (%)"
