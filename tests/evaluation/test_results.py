"""Results and tables: what is in them equals the metrics on the images by hand."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from test_evaluation import OneToThreeClasses, make_run

import litcam
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule, box_regions, mask_regions
from litcam.errors import InputError
from litcam.evaluation import evaluate, write_report
from litcam.evaluation.tables import DISAGREE, RIGHT_FOR_WRONG, WRONG_ON_OBJECT
from litcam.metrics import ADCC, Localization, MaxBoxAcc, Perturbation, PxAP, Segmentation

SCHEMA = json.loads(files("litcam.evaluation").joinpath("results.schema.json").read_text())


def batch_of(data: DigitScenesDataModule, size: int = 11) -> Any:
    """All validation images, normalised."""
    batch_size, data.batch_size = data.batch_size, size
    batch = data.normalize(next(iter(data.val_dataloader())))
    data.batch_size = batch_size
    return batch


def test_every_metric_gives_what_it_gives_on_all_images_at_once() -> None:
    module, data = make_run()
    names = ("localization:threshold=otsu", "segmentation", "max_box_acc", "pxap", "adcc", "perturbation:protocol=road")
    found = evaluate(module, data, ("agcam",), names, perturbation_images=None)
    batch = batch_of(data)
    explainer = litcam.create_explainer("agcam", module)
    heatmaps = explainer(batch["image"], batch["label"]).upsample((64, 64))
    localization, segmentation, boxes, pxap = Localization("otsu"), Segmentation(), MaxBoxAcc(), PxAP()
    localization.update(heatmaps, box_regions(batch))
    for metric in (segmentation, pxap):
        metric.update(heatmaps, mask_regions(batch), batch["mask"] != 255)
    boxes.update(heatmaps, batch["boxes"])
    adcc = ADCC()
    adcc.update(
        lambda images, targets: explainer(images, targets).upsample((64, 64)),
        *(module, batch["image"], heatmaps, batch["label"]),
    )
    road = Perturbation("road", mean=data.data_config["mean"], std=data.data_config["std"])
    road.update(module, batch["image"], heatmaps, batch["label"])
    expected = {
        **{name: localization.compute()[name] for name in ("iou", "dice", "pointing_game")},
        **{name: segmentation.compute()[name] for name in ("miou", "map")},
        **{name: boxes.compute()[name] for name in ("max_box_acc", "max_box_acc_v2")},
        "pxap": pxap.compute()["pxap"],
        **{name: adcc.compute()[name] for name in ("adcc", "adcc_of_means", "drop")},
        **{f"road_{name}": road.compute()[name] for name in ("lerf", "morf")},
    }
    scores = found.results["methods"]["agcam"]
    for name, value in expected.items():
        assert scores[name]["value"] == pytest.approx(float(value), abs=1e-6), name
        assert scores[name]["low"] <= scores[name]["value"] + 1e-9
        assert scores[name]["value"] <= scores[name]["high"] + 1e-9
    assert found.results["protocols"]["perturbation:protocol=road"].startswith("road: pixels imputed")
    assert found.results["lower_is_better"] == ["drop", "complexity", "road_morf"]
    curve = found.results["curves"]["agcam"]["perturbation:protocol=road"]
    assert curve["points"] == pytest.approx([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert curve["curves"]["morf"]["value"] == pytest.approx(road.compute()["morf_curve"].tolist(), abs=1e-6)


def test_the_table_of_images_has_the_scores_of_each_alone(tmp_path: Path) -> None:
    module, data = make_run()
    found = evaluate(module, data, ("agcam", "uniform"), perturbation_images=4)
    batch = batch_of(data)
    explanation = litcam.create_explainer("agcam", module)(batch["image"], batch["label"])
    heatmaps, probabilities = explanation.upsample((64, 64)), explanation.logits.softmax(1)
    images = found.images
    assert images["id"].tolist() == batch["id"]
    assert images["label"].tolist() == batch["label"].tolist()
    assert images["predicted"].tolist() == probabilities.argmax(1).tolist()
    np.testing.assert_allclose(images["probability"], probabilities.detach().amax(1), atol=1e-6)
    assert images["correct"].tolist() == (probabilities.argmax(1) == batch["label"]).tolist()
    for row in range(11):
        metric = Localization()
        metric.update(heatmaps[row : row + 1], box_regions(batch)[row : row + 1])
        for name in ("iou", "energy_inside"):
            assert images[f"agcam/{name}"][row] == pytest.approx(float(metric.compute()[name]), abs=1e-6)
    assert images["agcam/abpc"].notna().sum() == 4
    assert images["agcam/abpc"].mean() == pytest.approx(found.results["methods"]["agcam"]["abpc"]["value"])
    assert images["uniform/degenerate"].all()
    assert "uniform/iou" not in images
    assert found.results["methods"]["uniform"]["degenerate"] == {"value": 11, "num_images": 11}
    by_hand = images[images["label"] == images["label"][0]]
    row = found.classes[found.classes["label"] == images["label"][0]].iloc[0]
    assert row["num_images"] == len(by_hand)
    assert row["accuracy"] == pytest.approx(by_hand["correct"].mean())
    assert row["agcam/iou"] == pytest.approx(by_hand["agcam/iou"].mean())
    assert found.maps("agcam").shape == (11, 8, 8)
    found.write(tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "images.parquet"), images)
    assert pd.read_csv(tmp_path / "images.csv").shape == images.shape


@pytest.mark.parametrize("classes", [1, 2])
def test_results_follow_their_schema(tmp_path: Path, classes: int) -> None:
    module, data = make_run()
    data = DigitScenesDataModule(num_val=11, batch_size=4, num_workers=0, classes=classes)
    metrics = ("localization:wrong_predictions=skip", "perturbation", "adcc", "class_discrimination", "pxap")
    evaluate(module, data, ("agcam", "rollout", "uniform"), metrics, perturbation_images=5).write(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    jsonschema.validate(results, SCHEMA)
    assert results["controls"] == ["uniform"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**results, "accuracy": 1.5}, SCHEMA)


def test_wrong_predictions_are_left_out_and_counted_on_request() -> None:
    module, data = make_run()
    found = evaluate(module, data, ("agcam",), ("localization:wrong_predictions=skip", "mask_localization"))
    batch = batch_of(data)
    explanation = litcam.create_explainer("agcam", module)(batch["image"], batch["label"])
    right = explanation.logits.argmax(1) == batch["label"]
    assert 0 < int(right.sum()) < 11
    metric = Localization()
    metric.update(explanation.upsample((64, 64))[right], box_regions(batch)[right])
    scores = found.results["methods"]["agcam"]
    assert scores["iou"]["value"] == pytest.approx(float(metric.compute()["iou"]), abs=1e-6)
    assert (scores["iou"]["num_images"], scores["mask_iou"]["num_images"]) == (int(right.sum()), 11)
    left_out = found.results["left_out"]["agcam"]["localization:wrong_predictions=skip"]
    assert left_out == {"degenerate": 0, "without_region": 0, "wrong_predictions": int((~right).sum())}
    assert "wrong predictions left out" in found.results["protocols"]["localization:wrong_predictions=skip"]


def test_the_predicted_class_is_explained_on_request() -> None:
    module, data = make_run()
    found = evaluate(module, data, ("agcam",), target="predicted", perturbation_images=None)
    batch = batch_of(data)
    explanation = litcam.create_explainer("agcam", module)(batch["image"])
    metric = Perturbation()
    metric.update(module, batch["image"], explanation.upsample((64, 64)), explanation.targets)
    assert found.images["target"].tolist() == explanation.targets.tolist()
    assert found.images["label"].tolist() == batch["label"].tolist()
    value = found.results["methods"]["agcam"]["lerf"]["value"]
    assert value == pytest.approx(float(metric.compute()["lerf"]), abs=1e-6)


def test_one_class_of_several_is_explained_where_it_is_predicted() -> None:
    module, _ = make_run()
    data = OneToThreeClasses(classes=2, batch_size=4, num_workers=0)
    found = evaluate(module, data, ("agcam",), target="predicted", perturbation_images=0)
    labels = [sample["label"] for sample in data.dataset("val")]  # type: ignore[attr-defined]
    assert len(found.images) == 6
    for row, label in zip(found.images.itertuples(), labels, strict=True):
        assert row.correct == bool(label[row.predicted])
        assert row.label == (row.predicted if row.correct else int(label.nonzero()[0]))


def test_the_interval_draws_the_classes_of_an_image_together() -> None:
    """Two alike halves of an image say no more than one: the interval is not narrower for them."""
    module, data = make_run()
    one = evaluate(module, data, ("center",), ("localization",)).results["methods"]["center"]["energy_inside"]
    again = evaluate(module, data, ("center", "random"), ("localization",)).results["methods"]["center"]
    assert again["energy_inside"] == one, "an image is drawn alike for all methods"
    data = DigitScenesDataModule(num_val=40, batch_size=8, num_workers=0, classes=2)
    entry = evaluate(module, data, ("center",), ("localization",)).results["methods"]["center"]["energy_inside"]
    images = evaluate(module, data, ("center",), ("localization",)).images
    means = images.groupby("index")["center/energy_inside"].mean().to_numpy()
    draws = np.random.default_rng(0).integers(40, size=(4000, 40))
    low, high = np.percentile(means[draws].mean(1), [2.5, 97.5])
    assert entry["num_images"] == 80
    assert entry["high"] - entry["low"] == pytest.approx(high - low, rel=0.12)


def test_the_telling_images_are_what_they_are_called() -> None:
    torch.manual_seed(0)
    module = ViTClassifier("vit_mini_patch8_64", 10, True).eval()
    data = DigitScenesDataModule(num_val=120, batch_size=40, num_workers=0)
    found = evaluate(module, data, ("rollout", "agcam", "center"), ("mask_localization",))
    telling, images = found.results["telling"], found.images
    energy = images["rollout/mask_energy_inside"]
    assert telling[RIGHT_FOR_WRONG]["by"] == telling[WRONG_ON_OBJECT]["by"] == "rollout/mask_energy_inside"
    rows = telling[RIGHT_FOR_WRONG]["rows"]
    sure = images[images["correct"] & (images["probability"] >= 0.5) & (energy < energy.median() / 2)]
    assert set(rows) == set(sure.index.tolist())
    assert energy[rows].is_monotonic_increasing
    rows = telling[WRONG_ON_OBJECT]["rows"]
    assert rows
    assert not images["correct"][rows].any()
    assert (energy[rows] > energy.median()).all()
    assert energy[rows].is_monotonic_decreasing
    rollout, agcam = (found.maps(name).reshape(120, -1).astype(np.float64) for name in ("rollout", "agcam"))
    correlations = [np.corrcoef(one, other)[0, 1] for one, other in zip(rollout, agcam, strict=True)]
    assert telling[DISAGREE]["by"] == "correlation of rollout and agcam"
    assert telling[DISAGREE]["rows"] == np.argsort(correlations)[:20].tolist()


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("iou", "metric is 'iou'; choose one of localization, mask_localization"),
        ("localization:thresh=1", "localization has no option 'thresh'; it has threshold, prediction, paper"),
        ("localization:threshold=2", "threshold is 2"),
        ("perturbation:regions=boxes", "perturbation has no option 'regions'"),
        ("max_box_acc:regions=masks", "regions is 'masks'; choose one of boxes"),
        ("pxap:wrong_predictions=drop", "wrong_predictions is 'drop'; choose one of keep, skip"),
        ("perturbation:protocol=rode", "protocol is 'rode'"),
        ("adcc:precision", "The option 'precision' has no value"),
    ],
)
def test_a_wrong_metric_is_named_before_any_work(metric: str, message: str, tmp_path: Path) -> None:
    module, data = make_run()
    with pytest.raises(InputError, match=message):
        evaluate(module, data, ("agcam",), (metric,), folder=tmp_path / "parts")
    assert not list(tmp_path.iterdir())


class WithoutMasks(DigitScenesDataModule):
    """Scenes without masks."""

    def build_dataset(self, split: Any) -> Any:
        scenes = super().build_dataset(split)
        return [{key: value for key, value in scenes[i].items() if key != "mask"} for i in range(len(scenes))]


def test_a_metric_without_its_annotation_is_refused_if_asked_for_and_else_left_out() -> None:
    module, _ = make_run()
    data = WithoutMasks(num_val=5, batch_size=4, num_workers=0)
    found = evaluate(module, data, ("agcam",), perturbation_images=0)
    assert "iou" in found.results["methods"]["agcam"]
    assert "mask_iou" not in found.results["methods"]["agcam"]
    assert list(found.results["protocols"]) == ["localization"]
    with pytest.raises(InputError, match="pxap compares with masks, but the batches have no 'mask'"):
        evaluate(module, data, ("agcam",), ("pxap",))
    boxes = evaluate(module, data, ("agcam",), ("pxap:regions=boxes",)).results["methods"]["agcam"]["pxap"]
    assert boxes["num_images"] == 5


def test_a_subset_of_the_images_is_fixed_and_random() -> None:
    module, data = make_run()
    first, second = (evaluate(module, data, ("center",), num_images=5, seed=seed) for seed in (0, 0))
    assert first.results == second.results
    assert first.results["num_images"] == 5
    assert first.images["index"].tolist() != [0, 1, 2, 3, 4]
    assert first.images["index"].is_monotonic_increasing
    assert (
        evaluate(module, data, ("center",), num_images=5, seed=1).images["index"].tolist()
        != first.images["index"].tolist()
    )


def test_what_the_methods_cost_is_measured() -> None:
    module, data = make_run()
    found = evaluate(module, data, ("agcam", "relevance"), ("localization",))
    for method, cost in found.cost.items():
        assert 0 < cost["low"] <= cost["ms_per_image"] <= cost["high"], method
        assert cost["forwards"] > 1


def test_python_writes_the_report_too(tmp_path: Path) -> None:
    module, data = make_run()
    found = evaluate(module, data, ("agcam", "center"), ("localization",))
    page = write_report(tmp_path / "deep" / "down", {"first": found, "second": found}, num_images=5)
    assert page == tmp_path / "deep" / "down" / "report.html"
    assert "second" in page.read_text()
    rows = (page.parent / "drift.csv").read_text().splitlines()
    assert rows[0] == "method,from,to,correlation,iou"
    assert rows[1].startswith("agcam,first,second,")
    other = evaluate(module, DigitScenesDataModule(num_val=5, batch_size=4, num_workers=0), ("agcam", "center"))
    with pytest.raises(InputError, match="of different images"):
        write_report(tmp_path, {"first": found, "other": other})
