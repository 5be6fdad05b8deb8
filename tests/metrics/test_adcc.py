"""ADCC against an oracle of plain loops, the published tables and cases done by hand."""

import protocol_oracles as oracle
import pytest
import torch
from torch import Tensor, nn

import litcam
from conftest import make_images
from litcam.errors import InputError
from litcam.heatmaps import scale
from litcam.metrics import ADCC
from litcam.metrics.functional import ADCC_SCORES, adcc, adcc_scores

COUNT, CLASSES = 6, 3
COUNTS = ("num_images", "num_degenerate", "num_masked_degenerate")
# Drop, coherency, complexity and ADCC of ViT-ReciproCAM's tables, in per cent.
PUBLISHED = [
    (25.82, 88.61, 46.35, 69.11),
    (27.69, 84.58, 41.16, 70.34),
    (55.31, 79.41, 13.17, 64.53),
    (55.85, 80.67, 12.53, 64.54),
    (33.57, 70.22, 53.54, 59.03),
]


class Linear(nn.Module):
    """Logits that are linear in the image; counts the images that it saw."""

    def __init__(self) -> None:
        super().__init__()
        weight = 0.2 * torch.randn(CLASSES, 3 * 6 * 7, generator=torch.Generator().manual_seed(2))
        self.weight = nn.Parameter(weight)
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        return nn.functional.linear(images.flatten(1), self.weight)

    def explain(self, images: Tensor, targets: Tensor) -> Tensor:
        """A map in [0, 1] of image and class, good or bad; with a graph, as careless methods have it."""
        return scale((images.square() * self.weight[targets].view_as(images)).sum(1))


@pytest.fixture
def net() -> Linear:
    return Linear()


@pytest.fixture
def case(net: Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Images, maps and classes."""
    images = torch.randn(COUNT, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    return images, net.explain(images, targets).detach(), targets


def computed(metric: ADCC) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


@pytest.mark.parametrize("batch_size", [1, 4, 128])
@pytest.mark.parametrize("logits_known", [False, True])
def test_every_score_equals_the_oracle(
    net: Linear, case: tuple[Tensor, Tensor, Tensor], batch_size: int, logits_known: bool
) -> None:
    images, heatmaps, targets = case
    logits = net(images) if logits_known else None
    scores = adcc_scores(net.explain, net, *case, logits, batch_size)
    again = net.explain(images * heatmaps[:, None], targets).detach()
    expected = [oracle.adcc(net, *one) for one in zip(images, heatmaps, again, targets.tolist(), strict=True)]
    for name in ADCC_SCORES:
        assert scores[name].tolist() == pytest.approx([one[name] for one in expected], abs=1e-6)
    assert 0 < scores["increase"].sum() < COUNT
    assert (scores["drop"] > 0).any()


@pytest.mark.parametrize(("drop", "coherency", "complexity", "expected"), PUBLISHED)
def test_the_harmonic_mean_of_the_means_is_the_published_one(
    drop: float, coherency: float, complexity: float, expected: float
) -> None:
    shares = (torch.tensor(value / 100, dtype=torch.float64) for value in (drop, coherency, complexity))
    assert 100 * adcc(*shares).item() == pytest.approx(expected, abs=0.006)


def test_a_case_done_by_hand() -> None:
    """The probability of class 1 is k/(1 + k) for k white pixels: of four the map keeps two halves, which make one."""

    def net(images: Tensor) -> Tensor:
        white = images[:, 0].flatten(1).sum(1)
        return torch.stack([torch.zeros_like(white), white.log()], 1)

    def explain(images: Tensor, targets: Tensor) -> Tensor:
        assert images[0, :, 0].tolist() == [[0.5, 0.5, 0.0, 0.0]] * 3
        assert targets.tolist() == [1]
        return torch.tensor([[[0.0, 1.0, 0.0, 1.0]]])

    metric = ADCC(resamples=0)
    heatmaps = torch.tensor([[[0.5, 0.5, 0.0, 0.0]]])
    metric.update(explain, net, torch.ones(1, 3, 1, 4), heatmaps, torch.tensor([1]))
    drop = (4 / 5 - 1 / 2) / (4 / 5)
    expected = {"drop": drop, "increase": 0.0, "coherency": 0.5, "complexity": 0.25}
    mean = 3 / (1 / 0.5 + 1 / 0.75 + 1 / (1 - drop))
    counts = {"num_images": 1, "num_degenerate": 0, "num_masked_degenerate": 0}
    assert computed(metric) == pytest.approx({**expected, "adcc": mean, "adcc_of_means": mean, **counts})


def test_the_means_are_over_all_images_in_any_batches_and_processes(
    net: Linear, case: tuple[Tensor, Tensor, Tensor]
) -> None:
    together, apart, elsewhere = (ADCC(resamples=0) for _ in range(3))
    together.update(net.explain, net, *case)
    for metric, part in ((apart, slice(0, 1)), (apart, slice(1, 4)), (apart, slice(4, 4)), (elsewhere, slice(4, 6))):
        metric.update(net.explain, net, *(x[part] for x in case))
    apart.merge_state(elsewhere)
    scores = adcc_scores(net.explain, net, *case)
    means = {name: scores[name].mean().item() for name in ADCC_SCORES}
    of_means = 3 / (1 / means["coherency"] + 1 / (1 - means["complexity"]) + 1 / (1 - means["drop"]))
    assert of_means != pytest.approx(means["adcc"], abs=1e-3)
    expected = {**means, "adcc_of_means": of_means, **dict(zip(COUNTS, (COUNT, 0, 0), strict=True))}
    for metric in (together, apart):
        assert computed(metric) == pytest.approx(expected, abs=1e-6)


def test_degenerate_maps_are_counted_and_neither_averaged_nor_explained_again(
    net: Linear, case: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, heatmaps, targets = case
    alone, mixed = ADCC(), ADCC()
    alone.update(net.explain, net, *(x[:4] for x in case))
    heatmaps[4], heatmaps[5, 0, 0] = 1.0, float("nan")
    explained: list[int] = []

    def explain(images: Tensor, targets: Tensor) -> Tensor:
        explained.append(len(images))
        return net.explain(images, targets)

    mixed.update(explain, net, *case)
    assert explained == [4]
    assert computed(mixed) == pytest.approx({**computed(alone), "num_degenerate": 2}, abs=1e-6)
    only = ADCC()
    only.update(explain, net, images[4:], heatmaps[4:], targets[4:])
    assert explained == [4], "nothing was left to explain"
    scores = only.compute()
    assert scores["num_degenerate"] == 2
    assert all(scores[name].isnan() for name in (*ADCC_SCORES, "adcc_of_means"))


@pytest.mark.parametrize("value", [0.9, float("nan")])  # the mean of 42 times 0.9 is not 0.9: a correlation of rounding
def test_a_masked_image_without_a_map_has_no_coherency_and_is_counted(
    net: Linear, case: tuple[Tensor, Tensor, Tensor], value: float
) -> None:
    def explain(images: Tensor, targets: Tensor) -> Tensor:
        maps = net.explain(images, targets).detach().double()
        maps[0] = value
        return maps

    scores = adcc_scores(explain, net, *case)
    assert (scores["coherency"] == 0).tolist() == [True] + [False] * (COUNT - 1)
    assert (scores["adcc"] == 0).tolist() == [True] + [False] * (COUNT - 1)
    metric = ADCC()
    metric.update(explain, net, *case)
    counts = computed(metric)
    assert [counts[name] for name in COUNTS] == [COUNT, 0, 1]
    assert counts["coherency"] == pytest.approx(scores["coherency"].mean().item())


@pytest.mark.parametrize(("of_black", "drop", "score"), [(-2000.0, 1.0, 0.0), (2000.0, 0.0, 3 / (2 + 1 / 0.5))])
def test_no_division_by_zero_whatever_the_probabilities(of_black: float, drop: float, score: float) -> None:
    """Class 1 has probability 1 for the image and 0 for the masked one, or the other way round."""

    def net(images: Tensor) -> Tensor:
        darkness = 1 - images[:, 0].flatten(1).mean(1)
        return torch.stack([torch.zeros_like(darkness), (2 * darkness - 0.5) * of_black], 1)

    heatmaps = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    scores = adcc_scores(lambda *_: heatmaps, net, torch.ones(1, 3, 2, 2), heatmaps, torch.tensor([1]))
    assert (scores["drop"].item(), scores["increase"].item()) == (drop, 1 - drop)
    assert scores["coherency"].item() == pytest.approx(1)
    assert scores["adcc"].item() == pytest.approx(score)


def test_an_image_costs_two_forwards_or_one_with_its_logits(net: Linear, case: tuple[Tensor, Tensor, Tensor]) -> None:
    ADCC(batch_size=4).update(net.explain, net, *case)
    assert net.sizes == [4, 2, 4, 2]
    logits, net.sizes = net(case[0]), []
    ADCC().update(net.explain, net, *case, logits)
    assert net.sizes == [COUNT]


def test_bf16_changes_the_forwards_and_not_what_explain_does(net: Linear, case: tuple[Tensor, Tensor, Tensor]) -> None:
    full, half = ADCC(), ADCC(precision="bf16")
    for metric in (full, half):
        metric.update(net.explain, net, *case)
    expected, scores = full.compute(), half.compute()
    assert 1e-7 < abs(scores["drop"] - expected["drop"]) < 0.02
    assert scores["coherency"] == expected["coherency"]


def test_an_explainer_of_litcam_is_one_lambda_away(class_token_net: nn.Module) -> None:
    explainer = litcam.create_explainer("agcam", class_token_net)
    images, targets = make_images(class_token_net), torch.tensor([0, 3, 6])
    class_token_net.train()
    explanation = explainer(images, targets)
    metric = ADCC()
    metric.update(
        lambda images, targets: explainer(images, targets).upsample((64, 64)),
        class_token_net,
        images,
        explanation.upsample((64, 64)),
        targets,
        explanation.logits,
    )
    scores = computed(metric)
    assert scores["num_images"] == 3
    assert all(0 < scores[name] < 1 for name in ("coherency", "complexity", "adcc", "adcc_of_means"))
    assert all(module.training for module in class_token_net.modules())


@pytest.mark.parametrize(
    ("heatmaps", "targets", "message"),
    [
        (torch.rand(2, 5, 7), [0, 1], r"heatmaps \[2, 5, 7\] and targets \[2\] do not fit"),
        (torch.zeros(2, 5, 7), [0, 1], r"heatmaps \[2, 5, 7\]"),  # constant maps too
        (torch.rand(2, 6, 7), [[0], [1]], r"targets \[2, 1\]"),
        (torch.rand(2, 6, 7) - 2, [0, 1], r"they have to lie in \[0, 1\]"),
        (torch.rand(2, 6, 7) + 0.5, [0, 1], r"they have to lie in \[0, 1\]"),
        (torch.rand(2, 6, 7), [0, CLASSES], "targets reach from 0 to 3"),
        (torch.rand(2, 6, 7), [0.0, 1.0], "integers"),
    ],
)
def test_what_does_not_fit_is_named(net: Linear, heatmaps: Tensor, targets: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ADCC().update(net.explain, net, torch.randn(2, 3, 6, 7), heatmaps, torch.tensor(targets))


def test_maps_of_another_size_from_explain_are_named(net: Linear, case: tuple[Tensor, Tensor, Tensor]) -> None:
    with pytest.raises(InputError, match=r"explain gives \[6, 3, 3\]; maps \[6, 6, 7\]"):
        ADCC().update(lambda *_: torch.rand(6, 3, 3), net, *case)


def test_wrong_options_are_named() -> None:
    with pytest.raises(InputError, match="batch_size is 0"):
        ADCC(batch_size=0)
    with pytest.raises(InputError, match="precision is 'half'"):
        ADCC(precision="half")  # type: ignore[arg-type]
