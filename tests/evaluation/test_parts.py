"""An evaluation that is stopped goes on where it was, and ends in the same bits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluation import make_run

from litcam.data import DigitScenesDataModule
from litcam.errors import InputError
from litcam.evaluation import evaluate
from litcam.evaluation.parts import Parts

METHODS = ("agcam", "relevance", "random")
METRICS = ("localization", "segmentation", "pxap", "max_box_acc", "perturbation", "adcc")


class Stopped(Exception):
    pass


def written(folder: Path) -> dict[str, bytes]:
    """The files of an evaluation; what they cost differs from time to time."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name != "cost.json"}


def test_a_stopped_evaluation_goes_on_and_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data = make_run()
    evaluate(module, data, METHODS, METRICS, folder=tmp_path / "a" / "parts").write(tmp_path / "a")
    add, read = Parts.add, list[int]()

    def add_two(self: Parts, arrays: Any) -> None:
        if len(self) == 2:
            (self.folder / "unfinished.npz").write_bytes(b"half a file")
            raise Stopped
        add(self, arrays)

    monkeypatch.setattr(Parts, "add", add_two)
    with pytest.raises(Stopped):
        evaluate(module, data, METHODS, METRICS, folder=tmp_path / "b" / "parts")
    monkeypatch.setattr(Parts, "add", add)
    scenes = type(data.dataset("val"))
    get = scenes.__getitem__
    monkeypatch.setattr(scenes, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    evaluate(module, data, METHODS, METRICS, folder=tmp_path / "b" / "parts").write(tmp_path / "b")
    assert read == [8, 9, 10], "what was measured is not read again"
    assert written(tmp_path / "a") == written(tmp_path / "b")
    assert {"results.json", "results.csv", "images.csv", "images.parquet", "classes.csv"} <= set(
        written(tmp_path / "a")
    )


@pytest.mark.parametrize("change", ["weights", "methods", "metrics", "seed", "num_images", "data"])
def test_what_was_measured_otherwise_is_not_taken(tmp_path: Path, change: str) -> None:
    module, data = make_run()
    arguments: dict[str, Any] = {"explainers": ["center"], "metrics": ["localization"], "folder": tmp_path}
    before = evaluate(module, data, **arguments)
    if change == "weights":
        with torch.no_grad():
            module.net.head.bias.add_(torch.arange(10.0))
    elif change == "data":
        data = DigitScenesDataModule(num_val=11, batch_size=4, num_workers=0, seed=5)
    else:
        other: dict[str, Any] = {"methods": ["uniform"], "metrics": ["pxap"], "seed": 3, "num_images": 7}
        arguments["explainers" if change == "methods" else change] = other[change]
    after = evaluate(module, data, **arguments)
    assert len(after.images) == (7 if change == "num_images" else 11)
    if change != "seed":
        assert json.dumps(before.results) != json.dumps(after.results)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["seed"] == (3 if change == "seed" else 0)


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "parts", {"a": 1})
    numbers = {"x": np.array([0.1, 0.2]), "whole": np.array([0.0, 3.0]), "names": np.array(["ä", "b"])}
    parts.add(numbers)
    parts.add({**numbers, "x": np.array([np.nan])})
    assert len(Parts(tmp_path / "parts", {"a": 1})) == 2
    np.testing.assert_array_equal(parts.collect("x")["x"], [0.1, 0.2, np.nan])
    assert parts.collect("names")["names"].tolist() == ["ä", "b"] * 2
    assert parts.collect("whole")["whole"].tolist() == [0, 3] * 2
    assert len(Parts(tmp_path / "parts", {"a": 2})) == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        Parts(tmp_path / "file" / "parts", {})
