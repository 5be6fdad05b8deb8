"""The metrics give one number over all processes: that of one process which saw every image."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn

from litcam.heatmaps import upsample
from litcam.metrics import (
    ADCC,
    ClassDiscrimination,
    Localization,
    MaxBoxAcc,
    Perturbation,
    PxAP,
    Reliance,
    Segmentation,
)

COUNT = 9
SHARES = {
    "odd": ([0, 2, 4, 6, 8], [1, 3, 5, 7]),
    "one without any": (list(range(COUNT)), []),
    "one without any that counts": ([0, 1, 2, 3, 4, 6, 7, 8], [5]),  # the map of image 5 is constant
}


def images_and_maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, maps (one constant), regions (one empty) and classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(COUNT, 3, 16, 16, generator=generator)
    heatmaps = upsample(torch.rand(COUNT, 4, 4, generator=generator), (16, 16))
    heatmaps[5] = 0
    regions = torch.rand(COUNT, 16, 16, generator=generator) > 0.6
    regions[3] = False
    return images, heatmaps, regions, torch.randint(4, (COUNT,), generator=generator)


def explain(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Maps of images, for ADCC."""
    return upsample(images.abs().mean(1)[:, ::4, ::4], (16, 16))


def scores(share: list[int]) -> dict[str, list[float]]:
    """What the metrics say after some images, one at a time; over all processes where there are several."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    images, heatmaps, regions, labels = images_and_maps()
    metrics: dict[str, Any] = {
        "boxes": Localization(),
        "mask": Localization(prediction="mask"),
        "paper": Localization(paper=True),
        "classes": ClassDiscrimination(),
        "perturbation": Perturbation(),
        "road": Perturbation("road"),
        "adcc": ADCC(),
        "max_box_acc": MaxBoxAcc(),
        "pxap": PxAP(),
        "segmentation": Segmentation(),
        "reliance": Reliance(fill="blur"),
    }
    for index in share:
        one = slice(index, index + 1)
        for name in ("boxes", "mask", "paper", "pxap", "segmentation"):
            metrics[name].update(heatmaps[one], regions[one])
        of_two_classes = torch.stack([heatmaps, heatmaps.flip(-1)], 1), torch.stack([regions, ~regions], 1)
        metrics["classes"].update(*(tensor[one] for tensor in of_two_classes))
        for name in ("perturbation", "road"):
            metrics[name].update(net, images[one], heatmaps[one], labels[one])
        metrics["reliance"].update(net, images[one], regions[one], labels[one])
        metrics["adcc"].update(explain, net, images[one], heatmaps[one], labels[one])
        box = torch.tensor([[0.0, 2.0, index, 9.0, 16.0]] if regions[index].any() else []).view(-1, 5)
        metrics["max_box_acc"].update(heatmaps[one], box)
    return {
        f"{name} {score}": value.double().flatten().tolist()
        for name, metric in metrics.items()
        for score, value in metric.compute().items()
    }


def work(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save({name: scores(shares[rank]) for name, shares in SHARES.items()}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes computed."""
    folder = tmp_path_factory.mktemp("two")
    spawn(work, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("shares", SHARES)
def test_two_processes_compute_the_numbers_of_one(of_two_processes: list[dict[str, Any]], shares: str) -> None:
    alone = scores(list(range(COUNT)))
    for name in ("boxes", "classes", "max_box_acc", "pxap", "segmentation"):
        assert alone[f"{name} num_images"] == [7]
        assert (alone[f"{name} num_degenerate"], alone[f"{name} num_without_region"]) == ([1], [1])
    for name in ("perturbation", "road", "adcc", "reliance"):
        assert alone[f"{name} num_images"] == [8]
    for process in of_two_processes:
        assert process[shares].keys() == alone.keys()
        for name, values in alone.items():
            assert process[shares][name] == pytest.approx(values, abs=1e-9), name


def test_a_share_alone_would_give_other_numbers(of_two_processes: list[dict[str, Any]]) -> None:
    first, second = (scores(share) for share in SHARES["odd"])
    together = of_two_processes[0]["odd"]
    for name in ("boxes iou", "classes class_pointing", "perturbation abpc", "adcc drop", "pxap pxap", "boxes iou_low"):
        assert first[name] != pytest.approx(together[name], abs=1e-3)
        assert second[name] != pytest.approx(together[name], abs=1e-3)
