"""Perturbation protocols, ADCC and map similarity written from their formulas: one image at a time, plain loops.

An image is [C, H, W] in normalised space, a map [H, W] of the same size. Among equal values of a map the first pixel in
reading order is the lowest. Nothing here is of the package under test.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Pixel = tuple[int, int]
Net = Callable[[Tensor], Tensor]


def rising(heatmap: Tensor) -> list[Pixel]:
    """The pixels (y, x) from the lowest value of a map to the highest."""
    height, width = heatmap.shape
    return sorted(((y, x) for y in range(height) for x in range(width)), key=lambda pixel: float(heatmap[pixel]))


def probability(net: Net, image: Tensor, target: int) -> float:
    """Softmax probability of the class."""
    with torch.no_grad():
        logits = [float(y) for y in net(image[None])[0]]
    largest = max(logits)
    exponentials = [math.exp(y - largest) for y in logits]
    return exponentials[target] / sum(exponentials)


def is_predicted(net: Net, image: Tensor, target: int) -> float:
    """1 where the class has the highest logit, else 0."""
    with torch.no_grad():
        logits = [float(y) for y in net(image[None])[0]]
    return 1.0 if logits.index(max(logits)) == target else 0.0


def trapezoid_sum(heights: Sequence[float], width: float) -> float:
    """Area under straight lines between points so far apart."""
    return sum((a + b) / 2 * width for a, b in pairwise(heights))


def chefer(
    net: Net, image: Tensor, heatmap: Tensor, target: int, mean: Sequence[float], std: Sequence[float]
) -> dict[str, list[float]]:
    """Hits with 0, 10, …, 90 % of the pixels of the [0, 1] image black; positive: the highest of the map first."""
    order = rising(heatmap)
    curves = {}
    for name, pixels in (("positive", order[::-1]), ("negative", order)):
        curves[name] = []
        for tenth in range(10):
            colours = torch.stack([image[c] * std[c] + mean[c] for c in range(len(image))])
            for y, x in pixels[: len(pixels) * tenth // 10]:
                colours[:, y, x] = 0.0
            normalised = torch.stack([(colours[c] - mean[c]) / std[c] for c in range(len(image))])
            curves[name].append(is_predicted(net, normalised, target))
    return curves


def rise(net: Net, image: Tensor, heatmap: Tensor, target: int, steps: int) -> dict[str, list[float]]:
    """Probabilities while the highest pixels turn, step by step, from the image's to 0 or from the blurred to its."""
    pixels = rising(heatmap)[::-1]
    curves = {}
    for name, start, finish in (("deletion", image, torch.zeros_like(image)), ("insertion", blur(image), image)):
        canvas, turned, curves[name] = start.clone(), 0, []
        for step in range(steps + 1):
            while turned < len(pixels) * step // steps:
                y, x = pixels[turned]
                canvas[:, y, x] = finish[:, y, x]
                turned += 1
            curves[name].append(probability(net, canvas, target))
    return curves


def blur(image: Tensor) -> Tensor:
    """Convolution with an 11 by 11 kernel, zeros beyond the border of the image."""
    kernel = mirrored_gaussian(11, 5.0)
    channels, height, width = image.shape
    blurred = torch.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                total = 0.0
                for dy in range(-5, 6):
                    for dx in range(-5, 6):
                        if 0 <= y + dy < height and 0 <= x + dx < width:
                            total += kernel[dy + 5] * kernel[dx + 5] * float(image[c, y + dy, x + dx])
                blurred[c, y, x] = total
    return blurred


def mirrored_gaussian(size: int, sigma: float) -> list[float]:
    """What a Gaussian, cut at 4 σ and normalised, makes of a one in the middle of a line with mirrors at its ends."""
    reach = int(4 * sigma + 0.5)
    weights = {offset: math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-reach, reach + 1)}
    total = sum(weights.values())
    profile = []
    for place in range(size):
        value = 0.0
        for offset, weight in weights.items():
            seen = (place + offset) % (2 * size)  # d c b a | a b c d | d c b a repeats after twice its length
            if (seen if seen < size else 2 * size - 1 - seen) == size // 2:
                value += weight / total
        profile.append(value)
    return profile


def imputed(image: Floats, removed: set[Pixel]) -> Floats:
    """Every removed pixel the weighted mean of its neighbours: 1/6 beside, 1/12 diagonally; a dense linear system."""
    channels, height, width = image.shape
    unknown = {pixel: number for number, pixel in enumerate(sorted(removed))}
    matrix, right = np.zeros((len(unknown), len(unknown))), np.zeros((len(unknown), channels))
    for (y, x), row in unknown.items():
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                neighbour = (y + dy, x + dx)
                if (dy, dx) == (0, 0) or not (0 <= neighbour[0] < height and 0 <= neighbour[1] < width):
                    continue
                weight = 1 / 6 if dy == 0 or dx == 0 else 1 / 12
                matrix[row, row] += weight
                if neighbour in unknown:
                    matrix[row, unknown[neighbour]] -= weight
                else:
                    right[row] += weight * image[:, neighbour[0], neighbour[1]]
    solution = np.linalg.solve(matrix, right)
    filled = image.copy()
    for (y, x), row in unknown.items():
        filled[:, y, x] = solution[row]
    return filled


def road(net: Net, image: Tensor, heatmap: Tensor, target: int, noise: Tensor) -> dict[str, list[float]]:
    """Probabilities with 10, 20, …, 90 % of the pixels imputed, and noise [C, H, W] added to those."""
    order = rising(heatmap)
    curves = {}
    for name, pixels in (("lerf", order), ("morf", order[::-1])):
        curves[name] = []
        for tenth in range(1, 10):
            removed = set(pixels[: len(pixels) * tenth // 10])
            filled = torch.from_numpy(imputed(image.double().numpy(), removed)).to(image)
            for y, x in removed:
                filled[:, y, x] += noise[:, y, x]
            curves[name].append(probability(net, filled, target))
    return curves


def adcc(net: Net, image: Tensor, heatmap: Tensor, again: Tensor, target: int) -> dict[str, float]:
    """Drop, increase, coherency, complexity and their harmonic mean of one image; `again` is the map of s ⊙ x."""
    masked = torch.stack([channel * heatmap for channel in image])
    before, after = probability(net, image, target), probability(net, masked, target)
    drop = max(0.0, before - after) / before
    first, second = heatmap.flatten().tolist(), again.flatten().tolist()
    coherency = (correlation(first, second) + 1) / 2
    complexity = sum(first) / len(first)
    return {
        "drop": drop,
        "increase": 1.0 if after > before else 0.0,
        "coherency": coherency,
        "complexity": complexity,
        "adcc": 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop)),
    }


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation coefficient."""
    a, b = sum(first) / len(first), sum(second) / len(second)
    covariance = sum((x - a) * (y - b) for x, y in zip(first, second, strict=True))
    return covariance / math.sqrt(sum((x - a) ** 2 for x in first) * sum((y - b) ** 2 for y in second))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, equal values by their mean rank."""
    return correlation(ranks(first), ranks(second))


def ranks(values: Sequence[float]) -> list[float]:
    """For every value how many are smaller, and half of how many others are equal."""
    return [sum(v < value for v in values) + (sum(v == value for v in values) - 1) / 2 for value in values]


def ssim(first: Tensor, second: Tensor) -> float:
    """Mean structural similarity of two maps in [0, 1] (Wang et al. 2004): an 11 by 11 Gaussian, σ 1.5, at every pixel.

    Beyond the border a map goes on as in a mirror: d c b | a b c d | c b a.
    """
    weights = [math.exp(-0.5 * (d / 1.5) ** 2) for d in range(-5, 6)]
    window = torch.tensor([[a * b / sum(weights) ** 2 for a in weights] for b in weights], dtype=torch.float64)
    height, width = first.shape
    values = []
    for y in range(height):
        for x in range(width):
            rows = [_mirrored(y + d, height) for d in range(-5, 6)]
            columns = [_mirrored(x + d, width) for d in range(-5, 6)]
            a, b = (m.double()[rows][:, columns] for m in (first, second))
            mean_a, mean_b = float((window * a).sum()), float((window * b).sum())
            var_a = float((window * (a - mean_a) ** 2).sum())
            var_b = float((window * (b - mean_b) ** 2).sum())
            covariance = float((window * (a - mean_a) * (b - mean_b)).sum())
            numerator = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
            values.append(numerator / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2)))
    return sum(values) / len(values)


def _mirrored(place: int, size: int) -> int:
    return size - 1 - abs(size - 1 - abs(place))
