"""Lightning's callbacks that freeze and unfreeze: the classifier trains what they say, at the rates that they say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, ModelCheckpoint
from lightning_cases import assert_logged, digits, localization_by_hand, logged, make_trainer, tiny_classifier, with_tag
from torch import Tensor

from litcam.callbacks import DriftMonitor, HeatmapLogger, LocalizationMonitor
from litcam.classifier import ViTClassifier
from litcam.errors import InputError


class Unfreezes(BaseFinetuning):
    """Freezes the first block, and unfreezes it in the third epoch."""

    def __init__(self, lr: float | None = None, hand_over: bool = True) -> None:
        super().__init__()
        self.lr, self.hand_over = lr, hand_over

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net.blocks[:1])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 2:
            if self.hand_over:
                self.unfreeze_and_add_param_group(pl_module.net.blocks[:1], optimizer, self.lr)
            else:
                self.make_trainable(pl_module.net.blocks[:1])


class FreezesAll(Unfreezes):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net)


class Followed(L.Callback):
    """Notes the learning rates of every step, and the weights after every epoch."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.weights.append({name: value.detach().clone() for name, value in pl_module.net.named_parameters()})

    def moved(self, epoch: int) -> set[str]:
        """What the training of an epoch has changed."""
        before, after = self.weights[epoch - 1], self.weights[epoch]
        return {name for name in after if not torch.equal(before[name], after[name])}


def fit(
    folder: Path, callbacks: Sequence[L.Callback], ckpt_path: Path | None = None
) -> tuple[ViTClassifier, Followed, L.Trainer]:
    followed, module = Followed(), tiny_classifier(lr=1e-3, warmup_share=0.0)
    saver = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    trainer = make_trainer(
        folder, [followed, *callbacks, saver], max_epochs=4, enable_checkpointing=True, num_sanity_val_steps=0
    )
    trainer.fit(module, digits(), ckpt_path=ckpt_path, weights_only=True)
    return module, followed, trainer


def test_an_unfrozen_block_is_trained_from_then_on_and_follows_the_schedule_from_the_rate_it_is_given(
    tmp_path: Path,
) -> None:
    module, followed, trainer = fit(
        tmp_path, [Unfreezes(lr=5e-4), LocalizationMonitor(), HeatmapLogger(num_images=2), DriftMonitor()]
    )
    block = {name for name, _ in module.net.named_parameters() if name.startswith("blocks.0.")}
    assert not block & followed.moved(1)
    assert followed.moved(1)
    assert block <= followed.moved(2)
    assert block <= followed.moved(3)
    (first, second, third, fourth) = followed.rates[4:]
    assert first[-1] == 5e-4
    for rates in (second, third, fourth):
        assert rates[-1] / rates[0] == pytest.approx(first[-1] / first[0])
    assert fourth[0] < third[0] < second[0] < first[0]
    assert trainer.optimizers[0].param_groups[-1]["weight_decay"] == module.hparams["weight_decay"]
    batches = [trainer.datamodule.normalize(batch) for batch in trainer.datamodule.val_dataloader()]
    maps = localization_by_hand(module.net.eval(), batches)
    assert_logged(logged(trainer), with_tag("val/agcam/", maps))


@pytest.mark.parametrize("epoch", [1, 2], ids=["before it unfreezes", "after"])
def test_a_resumed_fit_trains_what_was_unfrozen_exactly_as_the_uninterrupted_one(tmp_path: Path, epoch: int) -> None:
    whole, _, _ = fit(tmp_path / "whole", [Unfreezes()])
    resumed, _, _ = fit(tmp_path / "resumed", [Unfreezes()], tmp_path / "whole" / f"{epoch}.ckpt")
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


def test_backbone_finetuning_trains_the_head_first_and_raises_the_backbones_rate_by_the_epoch(tmp_path: Path) -> None:
    module, followed, _ = fit(tmp_path, [BackboneFinetuning(2, lambda_func=lambda epoch: 3.0)])
    assert followed.moved(1) == {"head.weight", "head.bias"}
    assert followed.moved(2) == {name for name, _ in module.net.named_parameters()}
    assert [len(rates) for rates in followed.rates] == [2] * 4 + [3] * 4, "head with and without decay, backbone"
    (first, second, third, fourth) = followed.rates[4:]
    assert first[-1] == pytest.approx(0.1 * first[0])
    assert second[-1] / second[0] == pytest.approx(0.1), "both follow the schedule"
    assert third[-1] == pytest.approx(0.3 * first[0]), "three times the rate that it began with"
    assert fourth[-1] / fourth[0] == pytest.approx(third[-1] / third[0])


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224"])
def test_the_backbone_is_the_net_without_its_heads(name: str) -> None:
    sizes = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}
    module = ViTClassifier(name, 10, pretrained=False, model_kwargs=sizes)
    heads = {id(parameter) for parameter in module.net.parameters()} - {id(p) for p in module.backbone.parameters()}
    names = {name for name, parameter in module.net.named_parameters() if id(parameter) in heads}
    assert names >= {"head.weight", "head.bias"}
    assert all(name.startswith("head") for name in names)


def test_what_is_unfrozen_and_not_handed_to_the_optimizer_is_said(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"net.blocks.0.norm1.weight.* unfrozen, but not trained"):
        _, followed, _ = fit(tmp_path, [Unfreezes(hand_over=False)])
    assert not any(name.startswith("blocks.0.") for name in followed.moved(3))


def test_a_net_that_is_frozen_as_a_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Every weight of the net is frozen"):
        fit(tmp_path, [FreezesAll()])
