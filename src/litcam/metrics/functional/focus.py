"""How much more of a map lies on the object than outside of it, one number per image. Knows no explainer."""

import torch
from torch import Tensor

from litcam.metrics.functional.checks import check_maps, check_regions, check_scaled, count_pixels


def focus(heatmaps: Tensor, regions: Tensor) -> dict[str, Tensor]:
    """Map on the object against map outside of it, whatever the size of the object.

    ``energy_lift``, the share of the map's sum that lies in the region, as a multiple of the region's share of the
    image: 1 is what chance gives. The indices of Kang et al. (2026), who are alarmed above 1: ``a_tsi``, the mean of
    the map outside of the region / its mean inside, and ``m_tsi``, the maximum outside / the maximum inside; infinite
    where the map is zero inside.

    The numbers of a map that is zero everywhere or holds NaN, and of a region that is empty or the whole image, mean
    nothing; :class:`litcam.metrics.Focus` counts those apart.

    Args:
        heatmaps: [B, H, W] in [0, 1].
        regions: bool [B, H, W], the true regions.

    Returns:
        Three float64 tensors [B] by name.

    Raises:
        InputError: if shapes, dtypes or ranges are not these.
    """
    check_maps(heatmaps, "heatmaps")
    check_regions(regions, heatmaps)
    check_scaled(heatmaps)
    values = heatmaps.double()
    sizes = count_pixels(regions), count_pixels(~regions)
    inside, outside = ((values * part).sum((1, 2)) for part in (regions, ~regions))
    highest_inside, highest_outside = (
        values.masked_fill(~part, -torch.inf).amax((1, 2)) for part in (regions, ~regions)
    )
    share = sizes[0] / (sizes[0] + sizes[1])
    return {
        "energy_lift": inside / (inside + outside) / share,
        "a_tsi": (outside / sizes[1]) / (inside / sizes[0]),
        "m_tsi": highest_outside / highest_inside,
    }
