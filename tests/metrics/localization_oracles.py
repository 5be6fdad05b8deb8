"""Otsu's threshold, segmentation, box accuracy and pixel precision written from their definitions: plain loops."""

from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

import oracles

Box = tuple[int, int, int, int]
Values = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Pixels = set[tuple[int, int]]


def otsu(heatmap: Values) -> float:
    """The end (k + 1)/256 of the last bin of the lower class, by the variance ω0·ω1·(μ0 − μ1)² between the classes.

    Bin k of 256 holds k/256 < value ≤ (k + 1)/256, the first also 0.
    """
    bins = [0] * 256
    for value in heatmap.ravel().tolist():
        bins[max(k for k in range(256) if k == 0 or value > k / 256)] += 1
    best, threshold = Fraction(-1), 0.0
    for k in range(255):
        lower, upper = (Fraction(sum(part)) for part in (bins[: k + 1], bins[k + 1 :]))
        variance = Fraction(0)
        if lower and upper:
            lower_mean = sum(i * bins[i] for i in range(k + 1)) / lower
            upper_mean = sum(i * bins[i] for i in range(k + 1, 256)) / upper
            variance = lower * upper * (lower_mean - upper_mean) ** 2
        if variance > best:
            best, threshold = variance, (k + 1) / 256
    return threshold


def average_precision(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """Σ_n (R_n − R_{n−1})·P_n, a point n at each distinct score."""
    total, area, recall = sum(labels), 0.0, 0.0
    for score in sorted(set(scores), reverse=True):
        taken = [label for value, label in zip(scores, labels, strict=True) if value >= score]
        area += (sum(taken) / total - recall) * sum(taken) / len(taken)
        recall = sum(taken) / total
    return area


def segmentation(heatmaps: Values, regions: Bools, valid: Bools) -> dict[str, float]:
    """Pixel accuracy and mean IoU of all pixels, and the means over images of the two average precisions."""
    right, pixels, shared, either = 0, 0, [0, 0], [0, 0]
    precisions, foreground_precisions = [], []
    for heatmap, region, counted in zip(heatmaps, regions, valid, strict=True):
        mean = heatmap.sum() / heatmap.size
        scores, labels = [], []
        for y, x in zip(*np.nonzero(counted), strict=True):
            found, true = bool(heatmap[y, x] > mean), bool(region[y, x])
            right += found == true
            pixels += 1
            for label in (False, True):
                shared[label] += found == label and true == label
                either[label] += found == label or true == label
            scores.append(float(heatmap[y, x]))
            labels.append(true)
        background_scores, background_labels = [1 - score for score in scores], [not label for label in labels]
        precisions.append(average_precision(background_scores + scores, background_labels + labels))
        foreground_precisions.append(average_precision(scores, labels))
    return {
        "pixel_accuracy": right / pixels,
        "miou": (shared[0] / either[0] + shared[1] / either[1]) / 2,
        "map": sum(precisions) / len(precisions),
        "foreground_map": sum(foreground_precisions) / len(foreground_precisions),
    }


def box_overlaps(heatmap: Values, boxes: Sequence[Box]) -> tuple[list[float], list[float]]:
    """Of one image, at each of 1000 thresholds: the IoU of the largest component's box, and the best of all boxes."""
    largest, best = [], []
    for k in range(1000):
        components = oracles._components(heatmap >= k / 1000)
        overlaps = [max(_iou(_box_pixels(component), _pixels(box)) for box in boxes) for component in components]
        most = max((len(component) for component in components), default=0)
        ties = [overlap for overlap, found in zip(overlaps, components, strict=True) if len(found) == most]
        largest.append(max(ties, default=0.0))
        best.append(max(overlaps, default=0.0))
    return largest, best


def max_box_acc(overlaps: Iterable[tuple[list[float], list[float]]]) -> tuple[float, float]:
    """MaxBoxAcc and MaxBoxAccV2 of the overlaps of all images."""
    images = list(overlaps)

    def accuracy(which: int, level: float) -> float:
        return max(sum(image[which][k] >= level for image in images) / len(images) for k in range(1000))

    return accuracy(0, 0.5), sum(accuracy(1, level) for level in (0.3, 0.5, 0.7)) / 3


def _pixels(box: Box) -> Pixels:
    x0, y0, x1, y1 = box
    return {(y, x) for y in range(y0, y1) for x in range(x0, x1)}


def _box_pixels(component: list[tuple[int, int]]) -> Pixels:
    rows, columns = [y for y, _ in component], [x for _, x in component]
    return _pixels((min(columns), min(rows), max(columns) + 1, max(rows) + 1))


def _iou(first: Pixels, second: Pixels) -> float:
    return len(first & second) / len(first | second)


def pxap(heatmaps: Values, regions: Bools, valid: Bools) -> float:
    """Σ precision·(step in recall) over the thresholds 1, 0.999, …, 0, of the pixels of all images."""
    area, recall = 0.0, 0.0
    for k in range(1000, -1, -1):
        found = (heatmaps >= k / 1000) & valid
        hits = int((found & regions).sum())
        if found.any():
            area += hits / int(found.sum()) * (hits / int((regions & valid).sum()) - recall)
            recall = hits / int((regions & valid).sum())
    return area
