"""Images of several labels: each class of an image is watched by itself."""

from pathlib import Path

import lightning as L
import pytest
import torch
from lightning_cases import make_trainer
from torch import nn

import litcam
from litcam.callbacks import HeatmapLogger, LocalizationMonitor, PerturbationMonitor
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule, class_regions, present_classes
from litcam.errors import InputError
from litcam.metrics import Localization


def make_run() -> tuple[ViTClassifier, DigitScenesDataModule]:
    torch.manual_seed(0)
    sizes = {"depth": 2, "embed_dim": 24, "num_heads": 2}
    module = ViTClassifier("vit_mini_patch8_64", 10, False, sizes, multi_label=True)
    for parameter in module.net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.12)
    return module, DigitScenesDataModule(num_val=7, classes=2, batch_size=3, num_workers=0)


@pytest.mark.parametrize("regions", ["boxes", "masks"])
def test_localization_is_that_of_every_class_of_every_image(tmp_path: Path, regions: str) -> None:
    module, data = make_run()
    trainer = make_trainer(
        tmp_path, [LocalizationMonitor(regions=regions), LocalizationMonitor("center", None, regions)]
    )
    trainer.validate(module, data, verbose=False)
    data.batch_size = 7
    batch = data.normalize(next(iter(data.val_dataloader())))
    classes = present_classes(batch)
    prefix, prediction = ("", "boxes") if regions == "boxes" else ("mask_", "mask")
    for name in ("agcam", "center"):
        explanation = litcam.create_explainer(name, module)(batch["image"], classes)
        metric = Localization(prediction=prediction)
        metric.update(
            explanation.upsample((64, 64)).flatten(0, 1), class_regions(batch, classes, regions).flatten(0, 1)
        )
        for score in ("iou", "pointing_game", "energy_inside"):
            logged = float(trainer.callback_metrics[f"val/{name}/{prefix}{score}"])
            assert logged == pytest.approx(float(metric.compute()[score]), abs=1e-5)
    found = explanation.logits.gather(1, classes) > 0
    assert int(trainer.callback_metrics[f"val/agcam/{prefix}wrong_predictions"]) == int((~found).sum())


def test_the_panel_has_an_entry_per_class(tmp_path: Path) -> None:
    module, data = make_run()
    logger = HeatmapLogger(num_images=2, columns=1)
    make_trainer(tmp_path, [logger]).validate(module, data, verbose=False)
    assert len(logger.entries) == 4
    assert len({index for index, _ in logger.entries}) == 2


def test_perturbation_follows_the_sigmoid_of_every_class(tmp_path: Path) -> None:
    module, data = make_run()
    trainer = make_trainer(tmp_path, [PerturbationMonitor(num_images=None, multi_label=True)])
    trainer.validate(module, data, verbose=False)
    data.batch_size = 7
    batch = data.normalize(next(iter(data.val_dataloader())))
    classes = present_classes(batch)
    heatmaps = litcam.create_explainer("agcam", module)(batch["image"], classes).upsample((64, 64))
    lowest = heatmaps.flatten(2).argsort(dim=2, stable=True)
    morf = []
    for image in range(7):
        for position, label in enumerate(classes[image]):
            for step in range(11):
                perturbed = batch["image"][image].clone()
                perturbed.flatten(1)[:, lowest[image, position, 4096 - 4096 * step // 10 :]] = 0
                with torch.no_grad():
                    morf.append(float(module.eval()(perturbed[None])[0, label].sigmoid()))
    assert float(trainer.callback_metrics["val/agcam/morf"]) == pytest.approx(sum(morf) / len(morf), abs=1e-5)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (PerturbationMonitor(), "PerturbationMonitor follows the softmax probability of one label"),
        (LocalizationMonitor(target="predicted"), "the images have several labels each; choose true"),
    ],
)
def test_what_needs_one_label_says_so(tmp_path: Path, callback: L.Callback, message: str) -> None:
    module, data = make_run()
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, [callback]).validate(module, data, verbose=False)
