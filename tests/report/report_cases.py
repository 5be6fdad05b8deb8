"""Contents of reports, random but such as an evaluation gives."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from litcam.report import Drift, ReportImage, ReportRun
from litcam.report.contents import KINDS

METHODS = ("agcam", "rollout", "reciprocam:kernel=dirac", "random")
CONTROLS = ["random"]
LABELS = ("cat", "dog", 'an <i>odd</i> "class" & more', "Früchte 果")
HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked=1">&\'é果\u2028.png'
LOCALIZATION = ("iou", "pointing_game", "energy_inside")
AREAS = ("lerf", "morf", "abpc")
PROTOCOLS = {
    "localization": "boxes of the map > 0.5 against the true boxes",
    "perturbation": "pixels set to 0 by tenths",
}


def make_thumbnail(seed: int = 0, size: tuple[int, int] = (224, 224)) -> bytes:
    """A JPEG as smooth as a photograph: coarse noise, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_map(rng: np.random.Generator, shape: tuple[int, int] = (14, 14)) -> NDArray[np.uint8]:
    """A grid of two bumps and some noise, over 0 … 255."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    values = 0.15 * rng.random(shape)
    for _ in range(2):
        cy, cx, width = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(1, 4)
        values = values + rng.uniform(0.5, 1) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    return np.round(255 * (values - values.min()) / (values.max() - values.min())).astype(np.uint8)


def make_images(
    count: int = 30, seed: int = 0, size: tuple[int, int] = (224, 224), grid: tuple[int, int] = (14, 14), kept: int = 8
) -> list[ReportImage]:
    """Images of a gallery, with ``kept`` different pictures; one id is hostile, one map degenerate."""
    rng = np.random.default_rng(seed)
    pictures = [make_thumbnail(number, size) for number in range(kept)]
    images = []
    for index in range(count):
        label, predicted = LABELS[index % len(LABELS)], LABELS[int(rng.integers(len(LABELS)))]
        x, y = rng.uniform(0, size[1] / 2), rng.uniform(0, size[0] / 2)
        maps = {method: make_map(rng, grid) for method in METHODS}
        if index == 2:
            maps["rollout"] = np.zeros(grid, np.uint8)
        scores: dict[str, dict[str, float | None]] = {
            method: {score: float(rng.random()) for score in LOCALIZATION} for method in METHODS
        }
        scores["agcam"]["iou"] = None if index == 3 else scores["agcam"]["iou"]
        images.append(
            ReportImage(
                index=7 * index,
                id=HOSTILE if index == 1 else f"val/{index:04d}.JPEG",
                label=label,
                target=label,
                predicted=predicted,
                probability=float(rng.uniform(0.3, 1)),
                correct=label == predicted,
                thumbnail=pictures[index % kept],
                size=size,
                boxes=[(x, y, x + size[1] / 3, y + size[0] / 3.5)],
                maps=maps,
                scores=scores,
                kinds=(KINDS[index % 3],) if index % 4 == 0 else (),
            )
        )
    return images


def make_results(seed: int = 0, methods: tuple[str, ...] = METHODS) -> dict[str, Any]:
    """Results of schema version 2."""
    rng = np.random.default_rng(seed)
    scores: dict[str, Any] = {}
    for method in methods:
        entries: dict[str, Any] = {}
        for score in (*LOCALIZATION, *AREAS):
            value = float(rng.uniform(0.2, 0.9))
            metric = "perturbation" if score in AREAS else "localization"
            interval = {"low": value - 0.02, "high": value + 0.03}
            entries[score] = {"value": value, **interval, "num_images": 500, "metric": metric}
        entries["degenerate"] = {"value": int(rng.integers(5)), "num_images": 500}
        scores[method] = entries
    return {
        "schema_version": 2,
        "checkpoint": "runs/<b>/best.ckpt",
        "split": "val",
        "num_images": 1500,
        "accuracy": 0.8125,
        "target": "true",
        "protocols": PROTOCOLS,
        "methods": scores,
        "curves": {method: {"perturbation": make_curves(rng)} for method in methods},
        "cost": {method: {"ms_per_image": float(rng.uniform(1, 90)), "forwards": 1.1} for method in methods[:2]},
        "controls": [method for method in methods if method in CONTROLS],
        "left_out": {method: {"localization": {"without_region": 12}} for method in methods},
    }


def make_curves(rng: np.random.Generator) -> dict[str, Any]:
    """Two falling curves of eleven points with their intervals."""
    curves = {}
    for name, speed in (("lerf", 0.6), ("morf", 3.0)):
        value = np.exp(-speed * rng.uniform(0.7, 1.3) * np.linspace(0, 1, 11))
        curves[name] = {"value": value.tolist(), "low": (0.95 * value).tolist(), "high": (1.05 * value).tolist()}
    return {"points": list(range(0, 101, 10)), "curves": curves}


def make_run(name: str = "best.ckpt", seed: int = 0, count: int = 30, **arguments: Any) -> ReportRun:
    """A checkpoint with results and a gallery."""
    return ReportRun(name, make_results(seed), make_images(count, seed, **arguments))


def make_drift() -> Drift:
    """Four checkpoints."""
    series = {method: [0.5, 0.8, 0.9] for method in METHODS}
    return Drift(["first.ckpt", "second <2>.ckpt", "third.ckpt", "last.ckpt"], series, {"agcam": [0.4, 0.6, 0.7]})
