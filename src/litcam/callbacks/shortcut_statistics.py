"""What gives a shortcut away: numbers of a validation, and the images that are right for the wrong reason."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from litcam.heatmaps import is_degenerate, upsample
from litcam.metrics.functional.checks import has_both
from litcam.metrics.functional.focus import focus
from litcam.metrics.functional.localization import localization
from litcam.metrics.functional.profile import positional_profile
from litcam.metrics.functional.reliance import RELIANCE_COLUMNS, relative_foreground_sensitivity

POINTING, FOREGROUND_SENSITIVITY, PROFILE = "pointing_game", "relative_foreground_sensitivity", "positional_profile"
SUSPICIOUS: Mapping[str, int] = {  # statistic: 1 if high values are suspicious, -1 if low ones are
    POINTING: -1,
    FOREGROUND_SENSITIVITY: -1,
    PROFILE: 1,
}
_OBJECT, _BACKGROUND = (RELIANCE_COLUMNS.index(name) for name in ("accuracy_object", "accuracy_background"))


@dataclass(frozen=True)
class Watched:
    """What n images show after an epoch; of several labels each counts by itself.

    Attributes:
        labels: class indices, [n].
        correct: bool [n], which of them are predicted.
        maps: [n, gh, gw], scaled to [0, 1], on the grid of the patches; None where the profile is not wanted.
        pointing: float64 [n], whether the map is highest on the object; NaN where that means nothing, None without
            regions.
        energy_lift: float64 [n], see :func:`litcam.metrics.functional.focus.focus`; the same.
        reliance: float64 [n, 6], see :func:`litcam.metrics.functional.reliance.reliance`; NaN for images that it leaves
            out, None where it was not measured.
    """

    labels: Tensor
    correct: Tensor
    maps: Tensor | None
    pointing: Tensor | None
    energy_lift: Tensor | None
    reliance: Tensor | None

    @property
    def accuracy(self) -> float:
        """The share of the images whose class is predicted."""
        return float(self.correct.double().mean())


def pointing_and_lift(maps: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Pointing game and energy lift of what speaks for the class, c⁺, at the size of the image: float64 [n] each.

    NaN where they mean nothing: no map, no region, or nothing but the region.

    Args:
        maps: [n, gh, gw], unscaled; what is negative speaks against the class.
        regions: bool [n, H, W].
    """
    size: tuple[int, int] = (regions.shape[1], regions.shape[2])
    positive = upsample(maps.clamp(min=0), size)
    nothing = is_degenerate(positive) | ~has_both(regions)
    hits = localization(positive, regions, prediction="mask")[POINTING]
    lifts = focus(positive, regions)["energy_lift"]
    return hits.masked_fill(nothing, torch.nan), lifts.masked_fill(nothing, torch.nan)


def shortcut_statistics(watched: Watched) -> dict[str, float]:
    """The statistics of a validation, by name: those that what was watched allows.

    ``pointing_game``, the mean over images. ``relative_foreground_sensitivity``, from the accuracies on objects alone
    and on backgrounds alone. ``positional_profile``, the largest z over the classes, which needs no regions
    (:func:`litcam.metrics.functional.profile.positional_profile`). NaN where no image counts.
    """
    statistics = {}
    if watched.maps is not None:
        z = positional_profile(watched.maps, watched.labels).z
        statistics[PROFILE] = float(z.max()) if len(z) else torch.nan
    if watched.pointing is not None:
        statistics[POINTING] = float(watched.pointing.nanmean())
    if watched.reliance is not None:
        accuracies = watched.reliance.nanmean(0)
        sensitivity = relative_foreground_sensitivity(accuracies[_OBJECT], accuracies[_BACKGROUND])
        statistics[FOREGROUND_SENSITIVITY] = float(sensitivity)
    return statistics


def wrong_reasons(watched: Watched) -> tuple[Tensor, Tensor]:
    """Which images are right for the wrong reason, by the map and by reliance: bool [n] each.

    They are predicted rightly. By the map: less of it lies on the object than chance would put there (energy lift below
    1). By reliance: the object alone does not suffice for that prediction, but the background alone does.
    """
    nobody = torch.zeros_like(watched.correct)
    by_map = nobody if watched.energy_lift is None else watched.energy_lift < 1
    by_reliance = nobody
    if watched.reliance is not None:
        by_reliance = (watched.reliance[:, _OBJECT] == 0) & (watched.reliance[:, _BACKGROUND] == 1)
    return watched.correct & by_map, watched.correct & by_reliance
