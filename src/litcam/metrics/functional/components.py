"""The components of a map at all of its levels, in one pass. Knows no metric."""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

_NEIGHBOURS = (  # every pair of 8-connected pixels once: right, below, below right, below left
    (np.s_[:, :-1], np.s_[:, 1:]),
    (np.s_[:-1, :], np.s_[1:, :]),
    (np.s_[:-1, :-1], np.s_[1:, 1:]),
    (np.s_[:-1, 1:], np.s_[1:, :-1]),
)


class Components(NamedTuple):
    """Components at all levels, one in a row; in no particular order.

    Attributes:
        boxes: [m, 4] in pixels (x0, y0, x1, y1; ends exclusive).
        areas: [m] in pixels.
        levels: [m], the level at which the component is one.
    """

    boxes: NDArray[np.int32]
    areas: NDArray[np.int64]
    levels: NDArray[np.int64]


def level_components(levels: NDArray[np.int64], num_levels: int) -> Components:
    """The 8-connected components of the masks ``levels >= k`` for every k in 0 … num_levels − 1.

    Think of the map as land from which the sea withdraws. A hill is all land from which one climbs, from neighbour to
    highest neighbour, to the same summit. The part of a hill above the sea is connected at any level, so a component is
    the union of such parts, of hills that are joined by a pass above the sea. Thus boxes and areas of the hills at all
    levels are found first, and each pass, the highest first, then joins two components at all levels below it: as many
    joins as there are summits. On a smooth map of 224 by 224 pixels and 1000 levels that is twenty times as fast as
    labelling every mask anew; where every pixel is random, about as fast. A summit takes 24 bytes per level.

    Args:
        levels: [H, W], whole numbers in 0 … num_levels − 1.
        num_levels: how many levels there are.
    """
    hills = _hills(levels)
    depths = num_levels - 1 - levels  # of the sea when it leaves the pixel: tables run from the first land to the last
    corners, areas = _grow(hills, depths, num_levels)
    component = list(range(len(areas)))  # towards the hill that stands for the whole component
    for depth, one, other in _passes(hills, depths):
        one, other = _representative(component, one), _representative(component, other)
        if one != other:
            component[other] = one
            np.minimum(corners[one, :, depth:], corners[other, :, depth:], out=corners[one, :, depth:])
            areas[one, depth:] += areas[other, depth:]
            areas[other, depth:] = 0
    hill, since = areas.nonzero()
    left, top, right, bottom = corners[hill, :, since].T
    return Components(np.stack([left, top, -right, -bottom], axis=1), areas[hill, since], num_levels - 1 - since)


def _hills(levels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of each pixel's hill [H, W]; of neighbours at one level the last in reading order is the highest."""
    places = np.arange(levels.size).reshape(levels.shape)
    heights = levels * levels.size + places  # all different
    highest = cv2.dilate(heights.astype(np.float64), np.ones((3, 3), np.uint8)).astype(np.int64)
    uphill = (highest % levels.size).ravel()  # the place of the highest neighbour
    while ((twice_as_far := uphill[uphill]) != uphill).any():
        uphill = twice_as_far
    numbers = np.cumsum(uphill == places.ravel()) - 1
    return numbers[uphill].reshape(levels.shape)


def _grow(
    hills: NDArray[np.int64], depths: NDArray[np.int64], num_levels: int
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Corners [n, 4, num_levels] (x0, y0, −x1, −y1) and areas [n, num_levels] of each hill's land at every depth."""
    count = int(hills.max()) + 1
    hill, depth = hills.ravel(), depths.ravel()
    y, x = np.indices(hills.shape, dtype=np.int32).reshape(2, -1)
    corners = np.full((count, 4, num_levels), np.iinfo(np.int32).max, dtype=np.int32)
    for side, ends in enumerate((x, y, -x - 1, -y - 1)):
        np.minimum.at(corners.reshape(-1), (hill * 4 + side) * num_levels + depth, ends)  # one index is the fast way
    areas = np.bincount(hill * num_levels + depth, minlength=count * num_levels).reshape(count, num_levels)
    return np.minimum.accumulate(corners, axis=-1), areas.cumsum(axis=-1)


def _passes(hills: NDArray[np.int64], depths: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Where hills meet: the depth from which two neighbouring pixels are both land, and their hills; highest first."""
    count = int(hills.max()) + 1
    keys = []
    for here, there in _NEIGHBOURS:
        meet = hills[here] != hills[there]
        one, other = hills[here][meet], hills[there][meet]
        depth = np.maximum(depths[here], depths[there])[meet]
        keys.append((depth * count + np.minimum(one, other)) * count + np.maximum(one, other))
    rest, second = np.divmod(np.unique(np.concatenate(keys)), count)
    depth, first = np.divmod(rest, count)
    return zip(depth.tolist(), first.tolist(), second.tolist(), strict=True)


def _representative(component: list[int], hill: int) -> int:
    """The hill that stands for the component of a hill; the way there is shortened."""
    while component[hill] != hill:
        component[hill] = component[component[hill]]
        hill = component[hill]
    return hill
