"""ViTClassifier: the LightningModule that fine-tunes a timm Vision Transformer. Knows nothing of explanations."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.data import Mixup, resolve_model_data_config
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat

from litcam.data.batch import Batch, read_batch
from litcam.data.module import ImageDataModule
from litcam.errors import InputError
from litcam.logits import check_logits
from litcam.nets import create_net
from litcam.vit.model import uncompiled

_HALVES = {torch.float16, torch.bfloat16}
# Below a gradient of 0.0055 AdamW's mean square is 0 in float16 (0.001 of the square is less than half of its smallest
# number), and 1e-8 is 0 as well: the step would be infinite. With this no step is longer than about the learning rate.
_FLOAT16_EPS = 2.0**-8


class ViTClassifier(L.LightningModule):
    """Fine-tunes any timm Vision Transformer for classification, single-label or multi-label.

    Logs the loss and top-1 accuracy (and top-5 from 10 classes) of every stage; multi-label instead ``val/map``, the
    mean over the classes of the average precision.

    Args:
        model: name of a timm model, such as ``vit_base_patch16_224`` or the packaged ``vit_mini_patch8_64``.
        num_classes: size of the new head.
        pretrained: ``true`` for timm's weights (or the packaged ones), ``false`` for random ones, or the path of a
            local ``.safetensors`` or ``.pth`` file; position embeddings, patch kernels and heads of other sizes are
            adapted.
        model_kwargs: further arguments of the timm constructor, such as ``img_size`` or ``depth``.
        drop_path: stochastic depth rate of the last block; earlier blocks have proportionally less.
        freeze_backbone: train the head alone (linear probe).
        lr: peak learning rate of the head; with layer decay earlier layers have less.
        weight_decay: of AdamW; biases, norms, tokens and position embeddings have none.
        layer_decay: factor from each layer to the one below it; 1 gives all layers the same learning rate.
        warmup_share: share of all steps over which the learning rate rises linearly.
        min_lr_share: share of the peak learning rate at which the cosine ends.
        label_smoothing: mass spread evenly over all classes.
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of cutmix; 0 is off.
        multi_label: images may have several classes: labels are multi-hot [B, C], the loss is the binary cross-entropy
            of every class's sigmoid.

    Raises:
        InputError: for an unknown model name, a missing weight file, a value out of its range, or mixup of several
            labels.
        CheckpointError: if the weights of the file are damaged, do not fit or are not finite.
        UnsupportedModelError: if the timm model is not a Vision Transformer with patch tokens.
    """

    def __init__(
        self,
        model: str = "vit_base_patch16_224",
        num_classes: int = 1000,
        pretrained: bool | str = True,
        model_kwargs: dict[str, Any] | None = None,
        drop_path: float = 0.0,
        freeze_backbone: bool = False,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        warmup_share: float = 0.1,
        min_lr_share: float = 0.01,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        multi_label: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        _check_ranges(self.hparams)
        self.net = create_net(model, num_classes, pretrained, {"drop_path_rate": drop_path, **(model_kwargs or {})})
        if freeze_backbone:
            self._freeze_backbone()
        self.mixup = (
            Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes) if mixup or cutmix else None
        )
        metrics = _make_metrics(num_classes, multi_label)
        stages = ("val", "test") if multi_label else ("train", "val", "test")  # average precision keeps every logit
        self.metrics = nn.ModuleDict({f"{stage}_metrics": metrics.clone(prefix=f"{stage}/") for stage in stages})
        self.losses = nn.ModuleDict({f"{stage}_loss": _MeanLoss() for stage in ("val", "test")})

        # What is learnt from the data that it is first trained on, see litcam.data.ImageDataModule.
        self.class_names: list[str] | None = None
        self.class_ids: list[str] | None = None

    @property
    def data_config(self) -> dict[str, Any]:
        """timm's data config of the net (input_size, mean, std, interpolation, …), at the size it was built for."""
        net = uncompiled(self.net)
        config: dict[str, Any] = resolve_model_data_config(net)
        size = getattr(net.patch_embed, "img_size", None)  # constructor overrides win over the pretrained config
        return {**config, "input_size": (3, *size)} if size else config

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of normalised images [B, 3, H, W]."""
        logits: Tensor = self.net(images)
        return logits

    def on_fit_start(self) -> None:
        """Learn the names of the classes, to keep them in the checkpoints; a model that has some keeps these."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, ImageDataModule):
            return
        if self.class_names is None:
            if self.trainer.ckpt_path is not None:
                datamodule.tell_classes(again=True)  # the checkpoint to go on from keeps no names
            self.class_names, self.class_ids = list(datamodule.class_names), list(datamodule.class_ids)
        datamodule.use_model(self)
        datamodule.check_training()

    def take_classes(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the names of the classes from a checkpoint; the labels of the trainer's data are then theirs."""
        self.class_names, self.class_ids = checkpoint.get("class_names"), checkpoint.get("class_ids")
        datamodule = getattr(self._trainer, "datamodule", None)
        if isinstance(datamodule, ImageDataModule):
            datamodule.use_model(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["class_names"] = self.class_names
        checkpoint["class_ids"] = self.class_ids
        checkpoint["train_metrics"] = self._train_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.take_classes(checkpoint)
        for name, state in checkpoint.get("train_metrics", {}).items():
            metric = self._train_metrics[name]
            metric._update_count += 1  # in every process, for what follows from it is a collective
            if self.global_rank == 0:  # the counts are those of all processes
                for part, count in state.items():
                    setattr(metric, part, count.to(self.device))

    def on_train_epoch_end(self) -> None:
        """Log the metrics of the training: here and not in the steps, for those before a resume count too."""
        for name, metric in self._train_metrics.items():
            if metric.update_called:
                self.log(f"train/{name}", metric.compute())
            metric.reset()

    @property
    def _train_metrics(self) -> dict[str, Metric]:
        metrics: Any = self.metrics
        return dict(metrics["train_metrics"].items(keep_base=True)) if "train_metrics" in metrics else {}

    def _train_state(self) -> dict[str, dict[str, Tensor]]:
        """What the metrics of the training have counted in this epoch so far, in all processes."""
        states: dict[str, dict[str, Tensor]] = {}
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        if epochs.processed == epochs.started:  # that epoch is over
            return states
        for name, metric in self._train_metrics.items():
            with metric.sync_context(should_sync=not self.trainer.interrupted):  # else the others may be elsewhere
                counts: dict[str, Any] = metric.metric_state
                states[name] = {part: count.cpu().clone() for part, count in counts.items()}
        return states

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = self._images_and_labels(batch)
        if self.mixup is not None and len(images) % 2 == 0:  # timm pairs the images of a batch
            images, soft_labels = self.mixup(images.clone(), labels)
            logits = self._widened(self(images))
            loss = F.cross_entropy(logits, self._widened(soft_labels))
        else:
            logits = self._widened(self(images))
            loss = self._loss_per_image(logits, labels, self.hparams["label_smoothing"]).mean()
        self.log("train/loss", loss, batch_size=len(labels), sync_dist=True)  # as many images in every process
        self._log_metrics("train", logits, labels)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluation_step("test", batch)

    def _evaluation_step(self, stage: str, batch: Batch) -> None:
        images, labels = self._images_and_labels(batch)
        logits = self._widened(self(images))
        check_logits(logits, f"{stage} images")
        loss = self.losses[f"{stage}_loss"]
        loss.update(self._loss_per_image(logits, labels))  # type: ignore[operator]
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True)  # type: ignore[arg-type]
        self._log_metrics(stage, logits, labels)

    def _widened(self, values: Tensor) -> Tensor:
        """Values of a true half precision in single precision, for losses and metrics; autocast does so by itself."""
        return values.float() if self.dtype in _HALVES else values

    def _images_and_labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] and class indices [B], or multi-hot labels [B, C]."""
        multi_label: bool = self.hparams["multi_label"]
        known = read_batch(batch, multi_label)
        if multi_label and known["label"].ndim == 1:
            raise InputError("multi_label is true, but the labels are class indices; take a multi-label dataset.")
        return known["image"], known["label"]

    def _loss_per_image(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        if labels.ndim == 1:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        targets = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)

    def _log_metrics(self, stage: str, logits: Tensor, labels: Tensor) -> None:
        """Log the accuracies of an evaluation over all processes; those of the training at the end of its epoch."""
        if f"{stage}_metrics" not in self.metrics:
            return
        metrics = self.metrics[f"{stage}_metrics"]
        if len(labels):  # a process may have none
            metrics.update(logits.detach(), labels.int() if labels.ndim == 2 else labels)  # type: ignore[operator]
        if stage == "train":
            return
        for name, metric in metrics.items(keep_base=False):  # type: ignore[operator]
            self.log(name, metric, on_step=False, on_epoch=True, prog_bar=name in ("val/accuracy", "val/map"))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with layer decay, linear warm-up and cosine decay, per optimizer step."""
        net = uncompiled(self.net)  # the names in it tell the layers
        groups = param_groups_layer_decay(
            net,
            weight_decay=self.hparams["weight_decay"],
            no_weight_decay_list=getattr(net, "no_weight_decay", set)(),
            layer_decay=self.hparams["layer_decay"],
        )
        for group in groups:  # torch's optimizers know no lr_scale: it has to be in the learning rate itself
            group["lr"] = self.hparams["lr"] * group["lr_scale"]
        eps = _FLOAT16_EPS if self.dtype == torch.float16 else 1e-8
        # The weight decay is that of groups which others add, such as a callback that unfreezes.
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["lr"], eps=eps, weight_decay=self.hparams["weight_decay"])
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = _WarmupCosine(steps, self.hparams["warmup_share"], self.hparams["min_lr_share"])
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _freeze_backbone(self) -> None:
        self.net.requires_grad_(False)
        classifier = self.net.get_classifier()
        for head in classifier if isinstance(classifier, tuple) else (classifier,):  # distilled models have two
            head.requires_grad_(True)


def _make_metrics(num_classes: int, multi_label: bool) -> MetricCollection:
    if multi_label:
        return MetricCollection({"map": _MeanAveragePrecision(num_classes)})
    accuracy: dict[str, Metric | MetricCollection] = {"accuracy": _Accuracy(num_classes)}
    if num_classes >= 10:
        accuracy["accuracy_top5"] = _Accuracy(num_classes, top_k=5)
    return MetricCollection(accuracy, compute_groups=False)  # of equal states one would stand for both


class _MeanLoss(MeanMetric):
    """Mean over images that a true half precision leaves in single precision: a bfloat16 counts no further than 256."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        super()._apply(fn, exclude_state)
        # Where it is moved in a step, the dtype to which it casts values becomes the default of that time: a half.
        return self.set_dtype(torch.float32) if {self.dtype, self.mean_value.dtype} & _HALVES else self


class _Accuracy(MulticlassAccuracy):
    """Share of the images that are classified right; NaN once a logit was not finite, for NaN counts as the highest."""

    def __init__(self, num_classes: int, top_k: int = 1) -> None:
        super().__init__(num_classes, top_k, average="micro")
        self.not_finite: Tensor
        self.add_state("not_finite", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.not_finite += (~preds.isfinite()).sum()
        super().update(preds, target)

    def compute(self) -> Tensor:
        accuracy: Tensor = super().compute()
        return torch.where(self.not_finite > 0, torch.nan, accuracy)


class _MeanAveragePrecision(MultilabelAveragePrecision):
    """Mean of the average precision over the classes that occur; torchmetrics counts the others as 0."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]  # as in the class it derives from
        occurs = dim_zero_cat(self.target).bool().any(0)
        precisions: Tensor = super().compute()
        return precisions[occurs].mean()


class _WarmupCosine:
    """Factor of the learning rate at a step: linear from 1/warm-up to 1, then a half cosine down to ``floor``."""

    def __init__(self, steps: int, warmup_share: float, floor: float) -> None:
        self.steps = steps
        self.warmup = round(warmup_share * steps)
        self.floor = floor

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


def _check_ranges(hparams: Any) -> None:
    """Refuse values that could only fail later, or do nothing."""
    ranges = {
        "num_classes": (2, math.inf),
        "drop_path": (0, 0.99),
        "lr": (0, math.inf),
        "weight_decay": (0, math.inf),
        "layer_decay": (1e-6, 1),
        "warmup_share": (0, 0.99),
        "min_lr_share": (0, 1),
        "label_smoothing": (0, 0.99),
        "mixup": (0, math.inf),
        "cutmix": (0, math.inf),
    }
    if hparams["num_classes"] == 1:
        raise InputError("num_classes is 1, but data have at least two classes; those of yes and no have 2.")
    for name, (low, high) in ranges.items():
        if not low <= hparams[name] <= high:
            raise InputError(f"{name} is {hparams[name]}; it has to lie between {low} and {high}.")
    if hparams["multi_label"] and (hparams["mixup"] or hparams["cutmix"]):
        raise InputError("mixup and cutmix mix one label per image; with multi_label they have to be 0.")
