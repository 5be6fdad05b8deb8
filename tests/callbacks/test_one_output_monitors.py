"""Monitors of a net of one output log what they log of the net with the two logits 0 and z."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning_cases import UserModule, loader, logged, make_trainer, tiny_net
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import litcam
from litcam.callbacks import DriftMonitor, HeatmapLogger, LocalizationMonitor, PerturbationMonitor, RelianceMonitor
from litcam.data.batch import collate
from litcam.errors import InputError

METHOD = "rollout"  # knows no classes: its maps of both nets are the same


class Binary(UserModule):
    """A user's module of one output, with a binary loss; images of odd digits are of class 1."""

    def __init__(self, two_logits: bool = False) -> None:
        super().__init__(tiny_net(1))
        if two_logits:
            head = nn.Linear(self.net.head.in_features, 2)
            head.weight.data = torch.cat([torch.zeros_like(self.net.head.weight), self.net.head.weight.detach()])
            head.bias.data = torch.cat([torch.zeros(1), self.net.head.bias.detach()])
            self.net.head = head

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        logits = self(batch["image"])
        z = logits[:, -1] - (logits[:, 0] if logits.shape[1] == 2 else 0)
        loss = F.binary_cross_entropy_with_logits(z, batch["label"].view(-1).float())
        self.log("val/loss", loss, batch_size=len(z))


def binary_loader(label: Any = lambda digit: digit % 2) -> DataLoader[Any]:
    """Scenes whose labels are a function of their digits."""
    scenes = [{**scene, "label": label(scene["label"])} for scene in loader().dataset]
    return DataLoader(scenes, 4, collate_fn=collate)  # type: ignore[arg-type]  # a list is a dataset


def validated(module: L.LightningModule, folder: Path, callbacks: list[L.Callback]) -> dict[str, float]:
    """What is logged of a module."""
    trainer = make_trainer(folder, callbacks)
    trainer.validate(module, binary_loader(), verbose=False)
    return logged(trainer)


@pytest.mark.parametrize("target", ["true", "predicted"])
def test_what_is_logged_is_that_of_two_logits(tmp_path: Path, target: Any) -> None:
    logs, entries = [], []
    for two_logits in (False, True):
        panel = HeatmapLogger(METHOD, num_images=None, target=target)
        callbacks = [
            panel,
            LocalizationMonitor(METHOD, target=target, wrong_predictions="skip"),
            PerturbationMonitor(METHOD, num_images=None, target=target),
            PerturbationMonitor(METHOD, num_images=4, target="true", protocol="chefer", mean=[0.0] * 3, std=[1.0] * 3),
            RelianceMonitor(num_images=None),
        ]
        logs.append(validated(Binary(two_logits), tmp_path, callbacks))
        entries.append(panel.entries)
    assert logs[0] == pytest.approx(logs[1], abs=1e-5, nan_ok=True)
    assert 0 < logs[0]["val/reliance/accuracy"] < 1
    assert 0 < logs[0][f"val/{METHOD}/lerf"] < 1
    assert entries[0].keys() == entries[1].keys()
    for key, entry in entries[0].items():  # with their captions, which are red where the prediction is wrong
        assert (entry == entries[1][key]).all()


def test_drift_knows_the_predicted_class(tmp_path: Path) -> None:
    predictions = []
    for two_logits in (False, True):
        monitor = DriftMonitor(METHOD, num_images=None, monitor=None)
        module = Binary(two_logits)
        module.training_step = lambda batch, batch_idx: None  # type: ignore[assignment, method-assign]  # learns nothing
        make_trainer(tmp_path, [monitor]).fit(module, binary_loader(), binary_loader())
        predictions.append([epoch.predictions.tolist() for epoch in monitor.history])
    assert predictions[0] == predictions[1]
    assert {prediction for epoch in predictions[0] for prediction in epoch} == {0, 1}


@pytest.mark.parametrize("part", ["module", "net"])
def test_a_declared_regression_is_refused(tmp_path: Path, part: str) -> None:
    module = Binary()
    litcam.declare_regression(module if part == "module" else module.net)
    with pytest.raises(InputError, match="needs classes, but Binary was declared a regression"):
        validated(module, tmp_path, [LocalizationMonitor(METHOD)])


@pytest.mark.parametrize(
    ("label", "refusal"),
    [
        (float, r"not torch.float64 \[4\]; give whole numbers, and let the loss make floats of them"),
        (lambda digit: torch.tensor([float(digit % 2)]), r"not torch.float32 \[4, 1\]; give whole numbers"),
        (lambda digit: torch.tensor([digit % 2 == 1]), "multi_label is for a model of several outputs"),
        (lambda digit: digit, r"targets reach from \d to \d, but the model has 2 classes"),
    ],
)
def test_labels_that_one_output_cannot_have_are_refused(tmp_path: Path, label: Any, refusal: str) -> None:
    trainer = make_trainer(tmp_path, [LocalizationMonitor(METHOD)])
    scenes = binary_loader(label)
    if isinstance(label(1), Tensor) and label(1).dtype == torch.bool:
        for scene in scenes.dataset:
            scene["label"][:] = True
            scene["instance_labels"] = torch.zeros(1, dtype=torch.int64)
    module = Binary()
    module.validation_step = lambda batch, batch_idx: module(batch["image"]).mean()  # type: ignore[assignment, method-assign]
    with pytest.raises(InputError, match=refusal):
        trainer.validate(module, scenes, verbose=False)
