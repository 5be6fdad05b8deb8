"""A collection of metrics gives each the numbers that it has alone: states are not shared for being equal."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

import litcam.metrics
from litcam.accuracy import make_metrics
from litcam.heatmaps import upsample
from litcam.metrics import (
    ADCC,
    ClassDiscrimination,
    Focus,
    Localization,
    MapSimilarity,
    MaxBoxAcc,
    Perturbation,
    PxAP,
    Reliance,
    Segmentation,
)
from litcam.metrics.image_metric import ImageMetric, Measured

SIZE, COUNT, BATCHES = 16, 4, 3
NET = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))

# Of every class two metrics that differ in options which tell in no score of the first batch.
OPTIONS: dict[type[ImageMetric], tuple[dict[str, Any], dict[str, Any]]] = {
    ADCC: ({}, {"multi_label": True}),
    ClassDiscrimination: ({}, {}),
    Focus: ({}, {}),
    Localization: ({"threshold": 0.5}, {"threshold": 0.7}),
    MapSimilarity: ({}, {}),
    MaxBoxAcc: ({}, {}),
    Perturbation: ({}, {"multi_label": True}),
    PxAP: ({}, {}),
    Reliance: ({"fill": "mean"}, {"fill": "blur"}),
    Segmentation: ({}, {}),
}


def growing(kind: type[ImageMetric]) -> type[ImageMetric]:
    """A user's own metric of a kind: the images of a batch weigh 0, 1, 2 …"""

    class Growing(kind):  # type: ignore[misc, valid-type]
        def measure(self, *args: Any, **kwargs: Any) -> Measured:
            measured = super().measure(*args, **kwargs)
            return replace(measured, rows=measured.rows * torch.arange(len(measured.rows))[:, None])

    return Growing


def batches(kind: type[ImageMetric]) -> Iterator[tuple[Any, ...]]:
    """What a metric is updated with, batch by batch; the images of the first say nothing, whatever the options."""
    generator = torch.Generator().manual_seed(0)
    for number in range(BATCHES):
        images = torch.randn(COUNT, 3, SIZE, SIZE, generator=generator)
        maps = upsample(torch.rand(COUNT, 4, 4, generator=generator), (SIZE, SIZE))
        regions = torch.rand(COUNT, SIZE, SIZE, generator=generator) > 0.6
        labels = torch.randint(4, (COUNT,), generator=generator)
        if number == 0:
            maps, regions = torch.zeros_like(maps), torch.ones_like(regions)
        boxes = torch.tensor([[float(index), 2.0, index, 9.0, 16.0] for index in range(COUNT)])
        of_two_classes = torch.stack([maps, maps.flip(-1)], 1), torch.stack([regions, ~regions], 1)
        yield {
            ADCC: (explain, NET, images, maps, labels),
            ClassDiscrimination: of_two_classes,
            MapSimilarity: (maps, maps.roll(3, -1)),
            MaxBoxAcc: (maps, boxes),
            Perturbation: (NET, images, maps, labels),
            Reliance: (NET, images, regions, labels),
        }.get(kind, (maps, regions))


def explain(images: Tensor, targets: Tensor) -> Tensor:
    """Maps of images, for ADCC."""
    return upsample(images.abs().mean(1)[:, ::4, ::4], (SIZE, SIZE))


def pair(kind: type[ImageMetric]) -> dict[str, ImageMetric]:
    """Two different metrics of a kind, by name."""
    first, second = OPTIONS[kind]
    other = kind if second != first else growing(kind)
    return {"one": kind(resamples=2, **first), "other": other(resamples=2, **second)}


def alone(kind: type[ImageMetric]) -> dict[str, Tensor]:
    """What the two say if each is updated by itself."""
    found = {}
    for name, metric in pair(kind).items():
        for batch in batches(kind):
            metric.update(*batch)
        found |= {f"{name}_{score}": value for score, value in metric.compute().items()}
    return found


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12, equal_nan=True)


def test_every_metric_is_tried() -> None:
    kinds = [getattr(litcam.metrics, name) for name in litcam.metrics.__all__]
    assert {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, ImageMetric)} == set(OPTIONS)


@pytest.mark.parametrize("kind", OPTIONS)
def test_two_options_in_a_collection_say_what_each_says_alone(kind: type[ImageMetric]) -> None:
    """Their states are equal after the first batch; nested, cloned, pickled, moved and used again they stay apart."""
    expected = alone(kind)
    assert any(
        not torch.equal(expected[name], expected[f"other_{name[4:]}"]) for name in expected if name[:4] == "one_"
    )
    plain = MetricCollection(pair(kind))
    nested = MetricCollection([MetricCollection(pair(kind), prefix="in/", postfix="/out")])
    stream = list(batches(kind))
    for collection in (plain, nested):
        collection.update(*stream[0])
    first, second = (metric.metric_state["sums"] for metric in plain.values(copy_state=False))
    assert torch.equal(first, second), "the first batch tells them apart, and so would prove nothing"
    others = [plain.clone(), pickled(plain) if OPTIONS[kind][1] else plain.clone(), plain.clone().to("cpu")]
    for collection in (plain, nested, *others):
        for batch in stream[1:]:
            collection.update(*batch)
    for collection in (plain, *others):
        assert_equal(collection.compute(), expected)
    assert_equal(
        {name.removeprefix("in/").removesuffix("/out"): value for name, value in nested.compute().items()}, expected
    )
    plain.reset()
    for batch in stream:
        plain.update(*batch)
    assert_equal(plain.compute(), expected)


def pickled(collection: MetricCollection) -> MetricCollection:
    """The same from its pickle."""
    again: MetricCollection = pickle.loads(pickle.dumps(collection))
    return again


@pytest.mark.parametrize("kind", OPTIONS)
def test_metrics_that_have_seen_images_stay_apart_in_a_collection(kind: type[ImageMetric]) -> None:
    metrics = pair(kind)
    stream = list(batches(kind))
    for metric in metrics.values():
        metric.update(*stream[0])
    collection = MetricCollection(metrics)
    for batch in stream:
        collection.update(*batch)
    found = collection.compute()
    for name, metric in pair(kind).items():
        for batch in [stream[0], *stream]:
            metric.update(*batch)
        assert_equal({score: found[f"{name}_{score}"] for score in metric.compute()}, metric.compute())


@pytest.mark.parametrize("kind", OPTIONS)
def test_two_options_stay_apart_over_processes(kind: type[ImageMetric]) -> None:
    """Two processes that saw the same: sums and counts are twice those of one, and so the means are the same."""
    collection = MetricCollection(pair(kind))
    for metric in collection.values(copy_state=False):
        metric.distributed_available_fn = lambda: True
        metric.dist_sync_fn = both
    for batch in batches(kind):
        collection.update(*batch)
    expected = {name: 2 * value if "_num_" in name else value for name, value in alone(kind).items()}
    assert_equal(collection.compute(), expected)


def both(state: Tensor, group: Any = None) -> list[Tensor]:
    """A state of two processes that are alike."""
    return [state, state]


def test_a_users_metric_with_an_option_of_its_own_stays_apart() -> None:
    """Also one that changes its option after it was made."""

    class Scaled(Localization):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def scores(self, sums: Tensor, num_images: Tensor) -> dict[str, Tensor]:
            return super().scores(sums * self.factor, num_images)

        def measure(self, heatmaps: Tensor, regions: Tensor) -> Measured:
            return super().measure(heatmaps * self.factor, regions)

    def stream() -> Iterator[tuple[Any, ...]]:
        return batches(Localization)

    collection = MetricCollection({"one": Scaled(1.0), "halved": Scaled(0.5), "late": Scaled(1.0)})
    collection["late"].factor = 0.25
    for batch in stream():
        collection.update(*batch)
    found = collection.compute()
    for name, factor in (("one", 1.0), ("halved", 0.5), ("late", 0.25)):
        metric = Scaled(factor)
        for batch in stream():
            metric.update(*batch)
        assert_equal({score: found[f"{name}_{score}"] for score in metric.compute()}, metric.compute())
    assert found["one_iou"] != found["halved_iou"]


def test_top_5_is_counted_apart_from_top_1() -> None:
    """Also if the first batch is classified right by both."""
    metrics = make_metrics(num_classes=12, multi_label=False)
    labels = torch.arange(12)
    metrics.update(torch.eye(12), labels)
    second = torch.eye(12) + 2 * torch.eye(12).roll(1, 1)  # another class is first, the true one second
    metrics.update(second, labels)
    assert {name: float(value) for name, value in metrics.compute().items()} == {"accuracy": 0.5, "accuracy_top5": 1.0}
