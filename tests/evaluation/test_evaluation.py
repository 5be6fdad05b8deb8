"""Evaluation: the aggregates by hand, and the module and data of a checkpoint."""

from typing import Any

import numpy as np
import pytest
import torch

import litcam
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule, SceneStyle, box_regions, class_regions, present_classes
from litcam.evaluation import evaluate
from litcam.explainers import Explainer
from litcam.explainers.agcam import AGCAM
from litcam.metrics import ClassDiscrimination, Localization, Perturbation
from litcam.vit.trace import AttentionTrace


def make_run() -> tuple[ViTClassifier, DigitScenesDataModule]:
    torch.manual_seed(0)
    module = ViTClassifier("vit_mini_patch8_64", 10, False, {"depth": 2, "embed_dim": 24, "num_heads": 2}).eval()
    data = DigitScenesDataModule(num_val=11, batch_size=4, num_workers=0)
    data.use_data_config(module.data_config)
    return module, data


def test_results_equal_the_metrics_on_all_images_at_once() -> None:
    module, data = make_run()
    results = evaluate(module, data, explainers=("agcam", "center"), perturbation_images=None).results
    data.batch_size = 11
    batch = data.normalize(next(iter(data.val_dataloader())))
    for name in ("agcam", "center"):
        explanation = litcam.create_explainer(name, module)(batch["image"], batch["label"])
        heatmaps = explanation.upsample((64, 64))
        localization, perturbation = Localization(), Perturbation()
        localization.update(heatmaps, box_regions(batch))
        perturbation.update(module, batch["image"], heatmaps, batch["label"])
        expected: dict[str, Any] = {**localization.compute(), **perturbation.compute()}
        for metric in ("iou", "dice", "precision", "pointing_game", "energy_inside", "lerf", "morf", "abpc"):
            assert results["methods"][name][metric]["value"] == pytest.approx(float(expected[metric]), abs=1e-6)
    assert results["accuracy"] == pytest.approx(
        float((module(batch["image"]).argmax(1) == batch["label"]).float().mean())
    )


def test_two_classes_per_image_are_scored_each_and_told_apart() -> None:
    module, data = make_run()
    data.style = SceneStyle(classes=2)
    data.batch_size = 11
    batch = data.normalize(next(iter(data.val_dataloader())))
    data.batch_size = 4
    methods = ("agcam", "reciprocam:kernel=dirac", "rollout", "uniform")
    results = evaluate(module, data, methods, perturbation_images=None).results["methods"]
    classes = present_classes(batch)
    regions = class_regions(batch, classes)
    explanation = litcam.create_explainer("reciprocam", module, kernel="dirac")(batch["image"], classes)
    heatmaps = explanation.upsample((64, 64))
    discrimination, localization, perturbation = ClassDiscrimination(), Localization(), Perturbation()
    discrimination.update(heatmaps, class_regions(batch, classes, "masks"))
    localization.update(heatmaps.flatten(0, 1), regions.flatten(0, 1))
    for position in range(2):
        perturbation.update(module, batch["image"], heatmaps[:, position], classes[:, position])
    expected = {**discrimination.compute(), **localization.compute(), **perturbation.compute()}
    for metric in ("class_energy", "class_pointing", "iou", "energy_inside", "abpc"):
        assert results["reciprocam:kernel=dirac"][metric]["value"] == pytest.approx(float(expected[metric]), abs=1e-6)
    assert results["rollout"]["class_energy"]["value"] == pytest.approx(0.5)
    assert results["rollout"]["class_energy"]["num_images"] == 11
    assert results["uniform"]["degenerate"]["value"] == 22
    assert "class_energy" not in results["uniform"]


class OneToThreeClasses(DigitScenesDataModule):
    """Two-class scenes, of which the first ones lack a label and the second ones have one too many."""

    def build_dataset(self, split: Any) -> Any:
        scenes = [super(OneToThreeClasses, self).build_dataset(split)[i] for i in range(6)]
        for position, scene in enumerate(scenes):
            present, absent = scene["label"].nonzero()[:, 0], (~scene["label"]).nonzero()[:, 0]
            if position < 2:
                scene["label"][present[0]] = False
            elif position < 4:
                scene["label"][absent[0]] = True
        return scenes


def test_images_may_have_different_numbers_of_classes() -> None:
    module, _ = make_run()
    module.hparams["multi_label"] = True
    data = OneToThreeClasses(classes=2, batch_size=4, num_workers=0)
    data.use_data_config(module.data_config)
    scores = evaluate(module, data, ("agcam",), perturbation_images=None).results["methods"]["agcam"]
    assert scores["degenerate"]["num_images"] == 2 * 1 + 2 * 3 + 2 * 2
    assert scores["iou"]["num_images"] == 2 * 1 + 2 * 2 + 2 * 2  # the label too many has no region
    assert scores["class_energy"]["num_images"] == 2
    assert scores["abpc"]["num_images"] == 2 * 1 + 2 * 3 + 2 * 2  # each class by its sigmoid


def test_a_map_that_is_zero_on_all_classes_is_in_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    module, data = make_run()
    data.style = SceneStyle(classes=2)

    def in_a_corner(self: Explainer, trace: AttentionTrace, targets: torch.Tensor) -> torch.Tensor:
        maps = torch.zeros(*targets.shape, 8, 8)
        maps[:, :, 0, 0] = 1  # the corner, which is part of a class in few scenes only
        return maps

    monkeypatch.setattr(AGCAM, "heatmaps", in_a_corner)
    scores = evaluate(module, data, ("agcam",), perturbation_images=0).results["methods"]["agcam"]
    assert 0 < scores["class_energy"]["num_images"] < 11
    assert all(np.isfinite(entry["value"]) for entry in scores.values())


def test_perturbation_takes_a_fixed_subset() -> None:
    module, data = make_run()
    first, second = (evaluate(module, data, ["random"], perturbation_images=5).results for _ in range(2))
    assert first == second
    assert first["methods"]["random"]["abpc"]["num_images"] == 5
    assert "abpc" not in evaluate(module, data, ["random"], perturbation_images=0).results["methods"]["random"]
