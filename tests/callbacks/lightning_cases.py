"""Small LightningModules, data and trainers for the callbacks' tests, and what the callbacks should log, by hand."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import litcam
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule
from litcam.data.batch import collate
from litcam.metrics import Localization, Perturbation

TINY = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
SCORES = ("pixel_accuracy", "iou", "dice", "precision", "recall", "pointing_game", "energy_inside")


def roughen(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights large enough for attentions, gradients and predictions to be uneven."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.12, generator=generator)
    return module


def tiny_net(num_classes: int = 10, **arguments: Any) -> Any:
    """A random timm net of two blocks for images of 64 by 64, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **{**TINY, **arguments})
    return roughen(net)


def tiny_classifier(model_kwargs: dict[str, Any] | None = None, **arguments: Any) -> ViTClassifier:
    """litcam's own classifier around such a net, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kwargs = {**TINY, **(model_kwargs or {})}
        module = ViTClassifier("vit_tiny_patch16_224", 10, pretrained=False, model_kwargs=kwargs, **arguments)
        roughen(module.net)
    return module


def digits(num_val: int = 11, batch_size: int = 4, num_train: int = 8) -> DigitScenesDataModule:
    """litcam's own data: few scenes, drawn in this process."""
    return DigitScenesDataModule(num_train, num_val, num_val, batch_size=batch_size, num_workers=0)


class Scenes(Dataset[Any]):
    """Random normalised images with one box and its mask each, as dicts or as (image, label) pairs."""

    def __init__(self, count: int = 11, pairs: bool = False, size: int = 64) -> None:
        self.count, self.pairs, self.size = count, pairs, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(1000 + index)
        image = torch.randn(3, self.size, self.size, generator=generator)
        x0, y0 = torch.randint(0, self.size // 2, (2,), generator=generator).tolist()
        x1, y1 = x0 + self.size // 3, y0 + self.size // 2
        image[:, y0:y1, x0:x1] += 1.5
        label = int(torch.randint(10, (1,), generator=generator))
        if self.pairs:
            return image, label
        mask = torch.zeros(self.size, self.size, dtype=torch.uint8)
        mask[y0:y1, x0:x1] = 1
        mask[y0, x0:x1] = 255
        boxes = torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32)
        return {"image": image, "label": label, "boxes": boxes, "mask": mask, "id": str(index)}


def loader(count: int = 11, batch_size: int = 4, pairs: bool = False, size: int = 64) -> DataLoader[Any]:
    """A plain DataLoader of :class:`Scenes`."""
    return DataLoader(Scenes(count, pairs, size), batch_size, collate_fn=None if pairs else collate)


def batches_of(data: Any, split: str = "val") -> list[Any]:
    """The batches that a step gets, from a data module or a loader."""
    if isinstance(data, L.LightningDataModule):
        return [data.normalize(batch) for batch in data.evaluation_dataloader(split)]
    return list(data)


class UserModule(L.LightningModule):
    """A user's LightningModule around a net: no data config, batches as dicts or pairs, SGD."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = tiny_net() if net is None else net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def logits(self, images: Tensor) -> Tensor:
        """What the steps do with images."""
        return self(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = as_pair(batch)
        return F.cross_entropy(self.logits(images), labels)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, labels = as_pair(batch)
        self.log("val/loss", F.cross_entropy(self.logits(images), labels), batch_size=len(labels))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = as_pair(batch)
        self.log("test/loss", F.cross_entropy(self.logits(images), labels), batch_size=len(labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05, momentum=0.9)


def as_pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of either form of batch."""
    return (batch["image"], batch["label"]) if isinstance(batch, dict) else (batch[0], batch[1])


class History(L.Callback):
    """Keeps the logged scalars of every validation epoch, and the module as it was in that epoch's batches."""

    def __init__(self) -> None:
        self.scalars: list[dict[str, float]] = []
        self.modules: list[nn.Module] = []
        self.losses: list[float] = []

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == dataloader_idx == 0 and not trainer.sanity_checking:
            self.modules.append(copy.deepcopy(pl_module.net).eval())

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.scalars.append(logged(trainer))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))


def logged(trainer: L.Trainer) -> dict[str, float]:
    """The scalars that ModelCheckpoint and EarlyStopping see."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def make_trainer(folder: Path, callbacks: Sequence[L.Callback], tensorboard: bool = False, **options: Any) -> L.Trainer:
    """A quiet trainer on the CPU: one epoch of two batches unless ``options`` say otherwise."""
    logger = TensorBoardLogger(str(folder), name="run", version="", default_hp_metric=False) if tensorboard else False
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "limit_train_batches": 2,
        "num_sanity_val_steps": 2,
        "log_every_n_steps": 1,
        "logger": logger,
        "default_root_dir": str(folder),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(callbacks=list(callbacks), **{**defaults, **options})


def true_regions(batch: dict[str, Any], kind: str = "boxes") -> Tensor:
    """The region of every image, painted pixel by pixel: bool [B, H, W]."""
    count, _, height, width = batch["image"].shape
    region = torch.zeros(count, height, width, dtype=torch.bool)
    if kind == "masks":
        return (batch["mask"] != 0) & (batch["mask"] != 255)
    for index, *box in batch["boxes"].tolist():
        x0, y0, x1, y1 = (round(corner) for corner in box)
        region[int(index), y0:y1, x0:x1] = True
    return region


def localization_by_hand(
    net: nn.Module,
    batches: Iterable[Any],
    explainer: str = "agcam",
    kind: str = "boxes",
    target: str = "true",
    skip_wrong: bool = False,
    flip: bool = False,
    **options: Any,
) -> dict[str, float]:
    """What LocalizationMonitor should log, by the names without tags."""
    method = litcam.create_explainer(explainer, net, **options)
    metric = Localization(0.5, "boxes" if kind == "boxes" else "mask")
    wrong = 0
    for batch in batches:
        images, labels = as_pair(batch)
        explanation = method(images.flip(-1) if flip else images, labels if target == "true" else None)
        right = explanation.logits.argmax(1) == labels
        wrong += int((~right).sum())
        kept = right if skip_wrong else torch.ones_like(right)
        heatmaps = explanation.upsample((images.shape[-2], images.shape[-1]))
        metric.update(heatmaps[kept], true_regions(batch, kind)[kept])
    scores = metric.compute()
    counts = {"degenerate": float(scores["num_degenerate"]), "wrong_predictions": float(wrong)}
    return {**{name: float(scores[name]) for name in SCORES}, **counts}


def perturbation_by_hand(
    net: nn.Module, batches: Iterable[Any], explainer: str = "agcam", target: str = "true"
) -> dict[str, float]:
    """What PerturbationMonitor should log, by the names without tags."""
    method, metric = litcam.create_explainer(explainer, net), Perturbation()
    for batch in batches:
        images, labels = as_pair(batch)
        explanation = method(images, labels if target == "true" else None)
        metric.update(net, images, explanation.upsample((64, 64)), explanation.targets)
    scores = metric.compute()
    areas = {name: float(scores[name]) for name in ("lerf", "morf", "abpc")}
    return {**areas, "perturbation_degenerate": float(scores["num_degenerate"])}


def with_tag(tag: str, scores: dict[str, float]) -> dict[str, float]:
    """The scores under the names they are logged with."""
    return {tag + name: score for name, score in scores.items()}


def assert_logged(actual: dict[str, float], expected: dict[str, float], tolerance: float = 1e-6) -> None:
    """Every expected scalar is among the actual ones and equal; an all-NaN or all-equal table would prove nothing."""
    assert expected.keys() <= actual.keys()
    for name, value in expected.items():
        assert abs(actual[name] - value) <= tolerance, f"{name}: logged {actual[name]}, by hand {value}"


def assert_left_alone(module: nn.Module) -> None:
    """No hook is left in the module and no function mode in the process."""
    for name, child in module.named_modules():
        assert not child._forward_hooks, name
        assert not child._forward_pre_hooks, name
    assert torch.overrides._get_current_function_mode_stack() == []
