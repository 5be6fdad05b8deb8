"""The printed tables: every number whole, whatever the width and however many methods and metrics there are."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from litcam.evaluation import print_results

METHODS = [
    *("agcam", "relevance", "saw", "gradcam_plusplus", "hirescam", "evidence", "legrad", "raw_attention", "rollout"),
    *("reciprocam:kernel=dirac", "captum:IntegratedGradients:n_steps=4", "random", "center"),
]
SCORES = {
    "localization": ["pixel_accuracy", "iou", "dice", "precision", "recall", "pointing_game", "energy_inside"],
    "localization:threshold=otsu": [f"localization:threshold=otsu/{score}" for score in ("iou", "dice")],
    "perturbation": ["lerf", "morf", "abpc"],
    "adcc": ["drop", "coherency", "complexity", "adcc", "adcc_of_means"],
}


def made_up() -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """Results whose numbers are all different, and costs."""
    methods: dict[str, dict[str, Any]] = {}
    value = 0.0
    for method in METHODS:
        methods[method] = {"degenerate": {"value": 3}}
        for metric, scores in SCORES.items():
            for score in scores:
                value += 0.011
                entry = {"value": value, "low": value - 0.02, "high": value + 0.04, "num_images": 9, "metric": metric}
                methods[method][score] = entry
    del methods["saw"]["iou"]
    methods["random"]["drop"] = {"value": 123.4567, "low": 100.0, "high": 200.0, "num_images": 9, "metric": "adcc"}
    left_out = {method: {"adcc": {"degenerate": 1, "without_region": 0, "wrong_predictions": 12}} for method in METHODS}
    results = {
        "split": "val",
        "num_images": 1600,
        "accuracy": 0.7123,
        "lower_is_better": ["morf", "drop", "complexity"],
        "methods": methods,
        "left_out": left_out,
    }
    return results, {method: {"ms_per_image": 1000.5 + number} for number, method in enumerate(METHODS)}


def printed(width: int, terminal: bool) -> str:
    """What is printed at a width, without the codes of the colours."""
    file = io.StringIO()
    print_results(*made_up(), Console(file=file, width=width, force_terminal=terminal))
    return re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())


@pytest.mark.parametrize("width", [20, 40, 80, 120, 400])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_number_is_cut_at_any_width(width: int, terminal: bool) -> None:
    text = printed(width, terminal)
    assert "…" not in text
    results, cost = made_up()
    for method, scores in results["methods"].items():
        for score, entry in scores.items():
            if score != "degenerate":
                whole = f"{entry['value']:.3f} ± {(entry['high'] - entry['low']) / 2:.3f}"
                assert text.count(whole) >= 1, (method, score)
    assert all(f"{row['ms_per_image']:.1f}" in text for row in cost.values())


@pytest.mark.parametrize("terminal", [True, False])
def test_tables_fit_the_width_with_a_row_for_each_method(terminal: bool) -> None:
    lines = printed(80, terminal).splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if re.match(r"[│ ]*raw_attention ", line)]) == len(
        [line for line in lines if re.match(r"[│ ]*rollout ", line)]
    )
    [row] = [line for line in lines if re.search(r"^\W*agcam .*0\.011 ± 0\.030", line)]
    assert [float(number) for number in re.findall(r"(0\.\d+) ±", row)] == [0.011, 0.022, 0.033]


def test_without_a_terminal_there_are_no_frames_and_no_colours() -> None:
    file = io.StringIO()
    print_results(*made_up(), Console(file=file, width=80))
    assert not set("│┃━┏\x1b") & set(file.getvalue())


def test_directions_counts_and_missing_scores_are_shown() -> None:
    text = printed(400, terminal=False)
    assert re.search(r"morf\s↓", text)
    assert re.search(r"^saw .* - ", text, re.MULTILINE)  # it has no IoU
    assert re.search(r"degenerate +wrong predictions +ms per image", text)
    assert re.search(r"^agcam +3 +12 +1000\.5", text, re.MULTILINE)
    assert text.startswith("val: 1,600 images, accuracy 0.712")
