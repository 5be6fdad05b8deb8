"""ViTClassifier: the LightningModule that fine-tunes a timm Vision Transformer. Knows nothing of explanations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.data import Mixup, resolve_model_data_config
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from litcam.accuracy import HALVES, MeanLoss, make_metrics
from litcam.data.batch import Batch, read_batch
from litcam.data.module import ImageDataModule
from litcam.errors import InputError, some
from litcam.learning_rate import STEPS_OF_UNKNOWN, Schedule, WarmupCosine
from litcam.logits import check_logits
from litcam.nets import create_net
from litcam.vit.model import uncompiled

# Below a gradient of 0.0055 AdamW's mean square is 0 in float16 (0.001 of the square is less than half of its smallest
# number), and 1e-8 is 0 as well: the step would be infinite. With this no step is longer than about the learning rate.
_FLOAT16_EPS = 2.0**-8


class ViTClassifier(L.LightningModule):
    """Fine-tunes any timm Vision Transformer for classification, single-label or multi-label.

    Logs the loss and top-1 accuracy (and top-5 from 10 classes) of every stage; multi-label instead ``val/map``, the
    mean over the classes of the average precision. Of several evaluation loaders the first, which the monitors watch,
    keeps these names, and those of the others end in ``/dataloader_idx_1`` and so on.

    What a callback such as Lightning's BaseFinetuning unfreezes and gives to the optimizer follows the same schedule,
    from the learning rate that it is given on.

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
        warmup_share: share of all steps over which the learning rate rises linearly; of 1000 where their number is not
            known (``max_epochs: -1``, ``max_time`` alone, or data without a length).
        min_lr_share: share of the peak learning rate at which the cosine ends; without a known end there is none, and
            the rate stays.
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
        metrics = make_metrics(num_classes, multi_label)
        stages = ("val", "test") if multi_label else ("train", "val", "test")  # average precision keeps every logit
        self.metrics = nn.ModuleDict({f"{stage}_metrics": metrics.clone(prefix=f"{stage}/") for stage in stages})
        self.losses = nn.ModuleDict({f"{stage}_loss": MeanLoss() for stage in ("val", "test")})

        # What is learnt from the data that it is first trained on, see litcam.data.ImageDataModule.
        self.class_names: list[str] | None = None
        self.class_ids: list[str] | None = None
        self._unfrozen: list[str] | None = (
            None  # the weights that were trained when the checkpoint to go on from was made
        )

    @property
    def data_config(self) -> dict[str, Any]:
        """timm's data config of the net (input_size, mean, std, interpolation, …), at the size it was built for."""
        net = uncompiled(self.net)
        config: dict[str, Any] = resolve_model_data_config(net)
        size = getattr(net.patch_embed, "img_size", None)  # constructor overrides win over the pretrained config
        return {**config, "input_size": (3, *size)} if size else config

    @property
    def backbone(self) -> nn.Module:
        """The net without its heads, where Lightning's BackboneFinetuning looks for it; not to be called."""
        backbone, heads = nn.Module(), self._heads()
        for name, child in uncompiled(self.net).named_children():
            if not any(module in heads for module in child.modules()):
                backbone.add_module(name, child)
        for name, parameter in uncompiled(self.net).named_parameters(recurse=False):
            backbone.register_parameter(name, parameter)
        return backbone

    def _heads(self) -> Sequence[nn.Module]:
        """What gives the logits; distilled models have two."""
        classifier = uncompiled(self.net).get_classifier()
        return classifier if isinstance(classifier, tuple) else (classifier,)

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
        checkpoint["unfrozen"] = [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.take_classes(checkpoint)
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._unfrozen = checkpoint.get("unfrozen")
        for name, state in checkpoint.get("train_metrics", {}).items():
            metric = self._train_metrics[name]
            metric._update_count += 1  # in every process, for what follows from it is a collective
            if self.global_rank == 0:  # the counts are those of all processes
                for part, count in state.items():
                    setattr(metric, part, count.to(self.device))

    def on_train_start(self) -> None:
        """Go on with what was unfrozen: a callback that unfreezes later on has frozen it again in its setup."""
        unfrozen, self._unfrozen = self._unfrozen, None
        for name, parameter in self.named_parameters() if unfrozen is not None else ():
            parameter.requires_grad_(name in (unfrozen or ()))

    def on_train_epoch_end(self) -> None:
        """Log the metrics of the training: here and not in the steps, for those before a resume count too."""
        for name, metric in self._train_metrics.items():
            if metric.update_called:
                self.log(f"train/{name}", metric.compute())
            metric.reset()

    def on_train_epoch_start(self) -> None:
        """Tell of what a callback has unfrozen and not given to the optimizer: it would not be trained, in silence."""
        optimizers = self.trainer.optimizers
        known = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        lost = [name for name, p in self.named_parameters() if p.requires_grad and id(p) not in known]
        if lost and known:
            rank_zero_warn(
                f"{some(lost)}: unfrozen, but not trained, for the optimizer does not know them; a callback hands them "
                "over by Lightning's BaseFinetuning.unfreeze_and_add_param_group."
            )

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
        if "train_metrics" in self.metrics:  # they are logged when the epoch ends
            self._update(self.metrics["train_metrics"], logits, labels)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step("val", batch, dataloader_idx)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluation_step("test", batch, dataloader_idx)

    def on_validation_start(self) -> None:
        self._begin_to_count("val")

    def on_test_start(self) -> None:
        self._begin_to_count("test")

    def _begin_to_count(self, stage: str) -> None:
        """Reset the metrics of an evaluation: Trainer.validate left its own in inference mode, of no use in a fit."""
        for name, metric in (*self.losses.items(), *self.metrics.items()):
            if name.startswith(stage):
                metric.reset()  # type: ignore[operator]
        if self.trainer._results is not None:  # in which a name belongs to a number of loaders: it may be another now
            self.trainer._results.clear()

    def _evaluation_step(self, stage: str, batch: Batch, dataloader_idx: int) -> None:
        images, labels = self._images_and_labels(batch)
        logits = self._widened(self(images))
        check_logits(logits, f"{stage} images")
        place, loss = self._of_loader("losses", f"{stage}_loss", dataloader_idx)
        loss.update(self._loss_per_image(logits, labels))
        self._log_metric(f"{stage}/loss", loss, place, dataloader_idx)
        place, metrics = self._of_loader("metrics", f"{stage}_metrics", dataloader_idx)
        self._update(metrics, logits, labels)
        for name, metric in metrics.items(keep_base=True):
            self._log_metric(f"{stage}/{name}", metric, f"{place}.{name}", dataloader_idx)

    def _of_loader(self, group: str, name: str, dataloader_idx: int) -> tuple[str, Any]:
        """Where the metrics of an evaluation loader are, and these: of every further loader a copy of the first's."""
        modules: Any = getattr(self, group)
        key = f"{name}_{dataloader_idx}" if dataloader_idx else name
        if key not in modules:
            modules[key] = modules[name].clone()
            modules[key].reset()
        return f"{group}.{key}", modules[key]

    def _log_metric(self, name: str, metric: Metric, place: str, dataloader_idx: int) -> None:
        """Log an evaluation's metric over all processes; of several loaders the first keeps the plain name."""
        self.log(
            name,
            metric,
            on_step=False,
            on_epoch=True,
            prog_bar=name in ("val/accuracy", "val/map"),
            add_dataloader_idx=dataloader_idx > 0,
            metric_attribute=place,
        )

    def _widened(self, values: Tensor) -> Tensor:
        """Values of a true half precision in single precision, for losses and metrics; autocast does so by itself."""
        return values.float() if self.dtype in HALVES else values

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

    def _update(self, metrics: Any, logits: Tensor, labels: Tensor) -> None:
        if len(labels):  # a process may have none
            metrics.update(logits.detach(), labels.int() if labels.ndim == 2 else labels)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with layer decay, linear warm-up and cosine decay, per optimizer step."""
        net = uncompiled(self.net)  # the names in it tell the layers
        groups = param_groups_layer_decay(
            net,
            weight_decay=self.hparams["weight_decay"],
            no_weight_decay_list=getattr(net, "no_weight_decay", set)(),
            layer_decay=self.hparams["layer_decay"],
        )
        if not groups:
            raise InputError("Every weight of the net is frozen: leave at least the head to be trained.")
        for group in groups:  # torch's optimizers know no lr_scale: it has to be in the learning rate itself
            group["lr"] = self.hparams["lr"] * group["lr_scale"]
        eps = _FLOAT16_EPS if self.dtype == torch.float16 else 1e-8
        # The weight decay is that of groups which others add, such as a callback that unfreezes.
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["lr"], eps=eps, weight_decay=self.hparams["weight_decay"])
        schedule = WarmupCosine(self._training_steps(), self.hparams["warmup_share"], self.hparams["min_lr_share"])
        scheduler = Schedule(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _training_steps(self) -> float:
        """How many steps the training has; infinite where nobody knows, which is said."""
        steps = self.trainer.estimated_stepping_batches
        if 0 <= steps < math.inf:  # of data without a length it is -1
            return max(1, steps)
        rank_zero_warn(
            "How many steps this training has is not known: the learning rate rises over warmup_share of "
            f"{STEPS_OF_UNKNOWN} steps and then stays. With max_steps, or with max_epochs and training data that have "
            "a length, it falls as a cosine."
        )
        return math.inf

    def _freeze_backbone(self) -> None:
        self.net.requires_grad_(False)
        for head in self._heads():
            head.requires_grad_(True)


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
