"""Class discrimination written from its definition: plain loops over pixels, one image at a time."""

from collections.abc import Sequence

Grid = Sequence[Sequence[float]]


def class_discrimination(maps: Sequence[Grid], regions: Sequence[Grid]) -> tuple[float, float]:
    """Class energy and class pointing of one image: of the maps [K][H][W] of its classes and their regions [K][H][W].

    A pixel in the regions of several classes is in none. The energy of class a is the sum of its map over its region,
    divided by the sum of its map over all regions; its pointing is the share of its region among those pixels, of all
    regions, in which its map is highest. Both are averaged over the classes.
    """
    owner = _owners(regions)
    energies, pointings = [], []
    for own, heatmap in enumerate(maps):
        inside, everywhere = 0.0, 0.0
        best, hits, ties = float("-inf"), 0, 0
        for (y, x), label in owner.items():
            value = float(heatmap[y][x])
            everywhere += value
            inside += value if label == own else 0.0
            if value > best:
                best, hits, ties = value, 0, 0
            if value == best:
                ties += 1
                hits += label == own
        energies.append(inside / everywhere)
        pointings.append(hits / ties)
    return sum(energies) / len(energies), sum(pointings) / len(pointings)


def _owners(regions: Sequence[Grid]) -> dict[tuple[int, int], int]:
    """The class of every pixel that belongs to exactly one."""
    owner = {}
    for y in range(len(regions[0])):
        for x in range(len(regions[0][0])):
            there = [label for label, region in enumerate(regions) if region[y][x]]
            if len(there) == 1:
                owner[y, x] = there[0]
    return owner
