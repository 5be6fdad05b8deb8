"""The table of the images, that of the classes, and the images that tell most."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from litcam.evaluation.measuring import Measurements
from litcam.metrics.functional.correlation import pearson
from litcam.report.contents import KINDS

RIGHT_FOR_WRONG, WRONG_ON_OBJECT, DISAGREE = KINDS
COLUMNS = ("index", "id", "label", "target", "predicted", "probability", "target_probability", "correct")


def image_table(columns: Mapping[str, NDArray[Any]], class_names: Sequence[str]) -> pd.DataFrame:
    """Which images these are, and what the model makes of them."""
    table = pd.DataFrame({name: columns[name] for name in COLUMNS})
    known = dict(enumerate(class_names))
    for place, column in enumerate(("label", "target", "predicted")):
        table.insert(3 + 2 * place, f"{column}_name", table[column].map(lambda index: known.get(index, str(index))))
    return table


def class_table(images: pd.DataFrame) -> pd.DataFrame:
    """Number of images and means of everything, by true class."""
    numbers = images.drop(columns=["index", "id", "target", "target_name", "predicted", "predicted_name"])
    groups = numbers.groupby(["label", "label_name"])
    means = groups.mean()
    means.insert(0, "num_images", groups.size())
    return means.rename(columns={"correct": "accuracy"}).reset_index()


def telling_images(measurements: Measurements, images: pd.DataFrame, most: int = 20) -> dict[str, Any]:
    """The images that tell most, the most telling first: rows of the table of images, by kind.

    By the energy of the first method's map inside the object: predicted rightly and surely (p ≥ 0.5) with less than
    half of its median; predicted wrongly with more than its median. And the lowest correlations of the maps of the
    two methods that agree least on average.
    """
    methods = [name for name, explainer in measurements.explainers.items() if not explainer.is_control]
    telling: dict[str, Any] = {}
    inside = next(
        (
            f"{name}/{score}"
            for name in methods
            for score in ("mask_energy_inside", "energy_inside")
            if f"{name}/{score}" in images
        ),
        None,
    )
    if inside is not None:
        energy, sure = images[inside], images["probability"] >= 0.5
        wrong_reason = images[images["correct"] & sure & (energy < energy.median() / 2)]
        on_object = images[~images["correct"] & (energy > energy.median())]
        telling[RIGHT_FOR_WRONG] = {"by": inside, "rows": wrong_reason[inside].nsmallest(most).index.tolist()}
        telling[WRONG_ON_OBJECT] = {"by": inside, "rows": on_object[inside].nlargest(most).index.tolist()}
    if len(methods) > 1:
        pair, correlation = _least_alike(measurements, methods)
        rows = pd.Series(correlation).nsmallest(most).index.tolist()
        telling[DISAGREE] = {"by": f"correlation of {pair[0]} and {pair[1]}", "rows": rows}
    return telling


def _least_alike(measurements: Measurements, methods: Sequence[str]) -> tuple[tuple[str, str], NDArray[np.float64]]:
    """The two methods whose maps are least alike on average, and the correlation of the two maps of each image."""
    numbers = {name: number for number, name in enumerate(measurements.explainers)}
    pairs = [(one, other) for place, one in enumerate(methods) for other in methods[place + 1 :]]
    found: dict[tuple[str, str], list[NDArray[np.float64]]] = {pair: [] for pair in pairs}
    for part in measurements.parts:
        maps = {name: torch.from_numpy(part[f"{numbers[name]}.maps"]).float() for name in methods}
        for one, other in pairs:
            found[one, other].append(pearson(maps[one], maps[other]).numpy())
    joined = {pair: np.concatenate(parts) for pair, parts in found.items()}
    means = {pair: np.nanmean(values) if np.isfinite(values).any() else np.inf for pair, values in joined.items()}
    least = min(means, key=lambda pair: float(means[pair]))
    return least, joined[least]
