"""How good a classifier is: its mean loss, and accuracy or mean average precision. Knows no explanations."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat

HALVES = {torch.float16, torch.bfloat16}


def make_metrics(num_classes: int, multi_label: bool) -> MetricCollection:
    """Top-1 accuracy, with top-5 from 10 classes; multi-label the mean average precision."""
    if multi_label:
        return MetricCollection({"map": MeanAveragePrecision(num_classes)})
    accuracy: dict[str, Metric | MetricCollection] = {"accuracy": Accuracy(num_classes)}
    if num_classes >= 10:
        accuracy["accuracy_top5"] = Accuracy(num_classes, top_k=5)
    return MetricCollection(accuracy, compute_groups=False)  # of equal states one would stand for both


class MeanLoss(MeanMetric):
    """Mean over images that a true half precision leaves in single precision: a bfloat16 counts no further than 256."""

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        super()._apply(fn, exclude_state)
        # Where it is moved in a step, the dtype to which it casts values becomes the default of that time: a half.
        return self.set_dtype(torch.float32) if {self.dtype, self.mean_value.dtype} & HALVES else self


class Accuracy(MulticlassAccuracy):
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


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Mean of the average precision over the classes that occur; torchmetrics counts the others as 0."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none")

    def compute(self) -> Tensor:  # type: ignore[override]  # as in the class it derives from
        occurs = dim_zero_cat(self.target).bool().any(0)
        precisions: Tensor = super().compute()
        return precisions[occurs].mean()
