"""Data modules: fresh training scenes, every evaluation image once, and the model's own normalisation."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import Dataset

from litcam.data import DigitScenesDataModule
from litcam.errors import InputError

CONFIG: dict[str, Any] = {
    "input_size": (3, 48, 48),
    "mean": (0.1, 0.2, 0.3),
    "std": (0.5, 0.25, 0.125),
    "interpolation": "bicubic",
}


def make_module(**arguments: Any) -> DigitScenesDataModule:
    module = DigitScenesDataModule(
        **{"num_train": 20, "num_val": 7, "num_test": 5, "batch_size": 4, "num_workers": 0, **arguments}
    )
    module.use_data_config(CONFIG)
    return module


def ids(loader: Any) -> list[str]:
    return [identifier for batch in loader for identifier in batch["id"]]


def test_every_epoch_has_fresh_training_scenes_that_follow_from_its_number() -> None:
    loader = make_module().train_dataloader()
    first = ids(loader)
    loader.sampler.set_epoch(1)
    second = ids(loader)
    assert first == [f"train-0-{index:06d}" for index in range(20)]
    assert second == [f"train-0-{index:06d}" for index in range(20, 40)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_iterator_made_too_early_gives_the_epoch_that_was_set_before_its_first_batch(num_workers: int) -> None:
    loader = make_module(num_workers=num_workers).train_dataloader()
    batches = iter(loader)  # as Lightning makes it before it knows the epoch
    loader.sampler.set_epoch(3)
    assert next(batches)["id"] == [f"train-0-{index:06d}" for index in range(60, 64)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_goes_on_behind_the_batches_that_are_done_and_reads_none_of_them(num_workers: int) -> None:
    module, read = make_module(num_workers=num_workers), torch.zeros(20, dtype=torch.int).share_memory_()

    class Counted(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> Any:
            read[index] += 1
            return module.dataset("train")[index]

    module.train_dataset = Counted  # type: ignore[method-assign]
    loader = module.train_dataloader()
    for done in (3, 0, 5):
        read.zero_()
        loader.batches_done = lambda _, done=done: done
        assert ids(loader) == [f"train-0-{index:06d}" for index in range(4 * done, 20)]
        assert read.tolist() == [0] * 4 * done + [1] * (20 - 4 * done)
    assert len(loader) == 5


def test_a_loader_made_beside_the_fits_begins_at_the_beginning(tmp_path: Path) -> None:
    module, seen = make_module(), []

    class Beside(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(ids(module.train_dataloader()))

    trainer = L.Trainer(accelerator="cpu", max_epochs=1, callbacks=[Beside()], logger=False, default_root_dir=tmp_path)
    trainer.fit(Boring(), module)
    assert seen == [[f"train-0-{index:06d}" for index in range(20)]] * 5


class Boring(L.LightningModule):
    """Learns one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight * batch["image"].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_draw_the_same_scenes_as_the_training_process(num_workers: int) -> None:
    expected = [batch["image"] for batch in make_module().train_dataloader()]
    drawn = [batch["image"] for batch in make_module(num_workers=num_workers).train_dataloader()]
    assert all(torch.equal(one, other) for one, other in zip(expected, drawn, strict=True))


def test_evaluation_loaders_give_every_image_once_in_order() -> None:
    module = make_module()
    assert ids(module.val_dataloader()) == [f"val-0-{index:06d}" for index in range(7)]
    assert ids(module.test_dataloader()) == [f"test-0-{index:06d}" for index in range(5)]


def test_batches_of_scenes_with_two_classes_have_multi_hot_labels() -> None:
    module = make_module(classes=2)
    assert module.hparams["classes"] == 2
    for batch in module.val_dataloader():
        assert batch["label"].dtype == torch.bool
        assert batch["label"].sum(1).tolist() == [2] * len(batch["image"])
        assert len(batch["instance_labels"]) == len(batch["boxes"])


def test_images_have_the_size_and_normalisation_of_the_data_config() -> None:
    module = make_module()
    batch = next(iter(module.val_dataloader()))
    assert batch["image"].shape == (4, 3, 48, 48)
    assert batch["image"].dtype == torch.uint8
    normalized = module.on_after_batch_transfer(batch, 0)["image"]
    for channel, (mean, std) in enumerate(zip(CONFIG["mean"], CONFIG["std"], strict=True)):
        expected = (batch["image"][:, channel].double() / 255 - mean) / std
        torch.testing.assert_close(normalized[:, channel].double(), expected, rtol=0, atol=1e-5)


def test_normalising_twice_changes_nothing() -> None:
    module = make_module()
    once = module.normalize(next(iter(module.val_dataloader())))
    assert torch.equal(module.normalize(once)["image"], once["image"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"classes": 0}, "classes is 0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_module(**arguments)


def test_a_model_for_oblong_images_is_told_that_scenes_are_square() -> None:
    module = make_module()
    module.use_data_config({**CONFIG, "input_size": (3, 48, 64)})
    with pytest.raises(InputError, match="square, but the model takes images of 48 by 64"):
        module.val_dataloader()
