"""The learning rate over the steps of a training: a warm-up, then a cosine."""

import math

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

STEPS_OF_UNKNOWN = 1000  # of which the warm-up is a share, where a training has no known end


class WarmupCosine:
    """Factor of the learning rate at a step: linear from 1/warm-up to 1, then a half cosine down to ``floor``.

    Of infinitely many steps the warm-up is the share of 1000, and the factor then stays 1.
    """

    def __init__(self, steps: float, warmup_share: float, floor: float) -> None:
        self.steps = steps
        self.warmup = round(warmup_share * (steps if steps < math.inf else STEPS_OF_UNKNOWN))
        self.floor = floor

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


class Schedule(LambdaLR):
    """One schedule for all groups of an optimizer, those too that a callback adds or gives another rate to on the way.

    Such a rate counts as the one that the schedule has brought the group to until then.
    """

    def get_lr(self) -> list[float | Tensor]:
        schedule, groups = self.lr_lambdas[0], self.optimizer.param_groups
        rates = [*getattr(self, "_last_lr", ()), *[None] * len(groups)]  # as this left them
        for group, rate in zip(groups, rates, strict=False):
            if self.last_epoch > 0 and group["lr"] != rate:
                before = schedule(self.last_epoch - 1)
                group["initial_lr"] = group["lr"] / before if before else group["lr"]
        return [group["initial_lr"] * schedule(self.last_epoch) for group in groups]
