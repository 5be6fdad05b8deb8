"""Two processes log what one process logs: no image is missed, none counts twice, and no process waits for another."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from two_processes import CASES, FURTHER, run
from two_ranks import run_two_ranks

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results, Results]:
    """The folder of two processes that ran every case, and what each of them saw."""
    folder = tmp_path_factory.mktemp("two")
    run_two_ranks(Path(__file__).with_name("two_processes.py"), str(folder), "2")
    first, second = (json.loads((folder / f"process_{rank}.json").read_text()) for rank in (0, 1))
    return folder, first, second


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    """The same from this process alone."""
    folder = tmp_path_factory.mktemp("one")
    return folder, {case: run(case, folder, world=1) for case in (*CASES, *FURTHER)}


EXPECTED = ("agcam/iou", "agcam/abpc", "reliance/relative_foreground_sensitivity", "agcam/alarm/wrong_reason")


def stage_of(case: str) -> str:
    return "test" if "test" in case else "val"


def equal(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 or (math.isnan(one) and math.isnan(other))


@pytest.mark.parametrize("case", [*CASES, *FURTHER])
def test_two_processes_log_the_numbers_of_one(
    one: tuple[Path, Results], two: tuple[Path, Results, Results], case: str
) -> None:
    alone, first, second = one[1][case]["scalars"], two[1][case]["scalars"], two[2][case]["scalars"]
    assert len(alone) == len(first) == len(second) == (2 if "fit" in case else 1)
    for epoch_alone, epoch_first, epoch_second in zip(alone, first, second, strict=True):
        own = {"val/loss", "val/map", "val/accuracy", "val/accuracy_top5"} if "plain" not in case else set()
        watched = {name for name in epoch_alone if name.count("/") >= 2 or name in own}
        several = ("loss", "map", "agcam/iou", "agcam/abpc")
        assert watched >= {f"{stage_of(case)}/{name}" for name in (several if case == "several labels" else EXPECTED)}
        assert watched <= epoch_first.keys()
        for name in watched:
            assert equal(epoch_alone[name], epoch_first[name]), (name, epoch_alone[name], epoch_first[name])
            assert equal(epoch_first[name], epoch_second[name]), f"{name} is another number in the second process"


@pytest.mark.parametrize("case", CASES)
def test_the_panels_of_two_processes_hold_each_image_once(
    one: tuple[Path, Results], two: tuple[Path, Results, Results], case: str
) -> None:
    for explainer, images in one[1][case]["panels"].items():
        first, second = (two[process][case]["panels"][explainer] for process in (1, 2))
        assert sorted(first + second) == images
        name = "test.png" if "test" in case else "epoch_002.png" if "fit" in case else "epoch_000.png"
        panels = [
            np.asarray(Image.open(folder / case / "run" / "heatmaps" / explainer / name), dtype=int)
            for folder in (one[0], two[0])
        ]
        assert panels[0].shape == panels[1].shape
        assert np.abs(panels[0] - panels[1]).max() <= 8, "maps of other batches round differently in the last bit"


def test_the_cases_are_hard_enough_for_an_error_to_show(one: tuple[Path, Results]) -> None:
    for case in CASES:
        results = one[1][case]
        scalars = results["scalars"][-1]
        stage = stage_of(case)
        total = 6 if case == "own limited" else 9
        assert results["panels"]["center"] == list(range(total))
        assert len(results["panels"]["agcam"]) == 5
        assert 0 < scalars[f"{stage}/agcam/wrong_predictions"] <= total
        assert not math.isnan(scalars[f"{stage}/agcam/iou"])


def test_the_first_process_alone_writes_the_history_and_the_best_checkpoint(
    two: tuple[Path, Results, Results],
) -> None:
    for case in ("own fit", "plain fit"):
        folder = two[0] / case / "run"
        rows = (folder / "history.csv").read_text().splitlines()
        assert len(rows) == 4, "the names, before the training, and two epochs"
        before, *trained = (dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:])
        for row in trained:  # nothing is learnt
            assert float(row["val/agcam/iou"]) == pytest.approx(float(before["val/agcam/iou"]), abs=1e-6)
        assert len(list(folder.rglob("best*.ckpt"))) == 1
        assert len(list(folder.glob("events.out.tfevents*"))) == 1
