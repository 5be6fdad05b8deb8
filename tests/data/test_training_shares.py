"""Two training processes share the images of an epoch out: every image once, none in both."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_cases import Pictures, save_picture
from torch.multiprocessing import spawn

from litcam.data import DigitScenesDataModule, ImageDataModule, Record

COUNT, EPOCHS = 8, 2


def modules(folder: str) -> dict[str, ImageDataModule]:
    """One of each kind of sampler."""
    records = [Record(Path(folder) / f"{index}.jpg", (0,), str(index)) for index in range(COUNT)]
    scenes = DigitScenesDataModule(num_train=COUNT, num_val=1, num_test=1, batch_size=2, num_workers=0)
    return {"pictures": Pictures(records, batch_size=2), "scenes": scenes}


def ids(folder: str) -> dict[str, list[list[str]]]:
    """The images that this process trains on, epoch by epoch."""
    found: dict[str, list[list[str]]] = {}
    for name, module in modules(folder).items():
        loader: Any = module.train_dataloader()
        for epoch in range(EPOCHS):
            loader.sampler.set_epoch(epoch)
            found.setdefault(name, []).append([image for batch in loader for image in batch["id"]])
    return found


def work(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(ids(folder)))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """What one process alone trains on, and each of two."""
    folder = tmp_path_factory.mktemp("two")
    for index in range(COUNT):
        save_picture(folder / f"{index}.jpg", (60, 60))
    spawn(work, (str(folder),), nprocs=2)
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return ids(str(folder)), first, second


@pytest.mark.parametrize("kind", ["pictures", "scenes"])
def test_two_processes_train_on_every_image_of_an_epoch_once(shares: tuple[Any, Any, Any], kind: str) -> None:
    for alone, first, second in zip(*(share[kind] for share in shares), strict=True):
        assert len(first) == len(second) == COUNT // 2
        assert [image for pair in zip(first, second, strict=True) for image in pair] == alone
        assert len(set(alone)) == COUNT


def test_epochs_differ(shares: tuple[Any, Any, Any]) -> None:
    for share in shares:
        assert share["pictures"][0] != share["pictures"][1]
        assert not set(share["scenes"][0]) & set(share["scenes"][1])
