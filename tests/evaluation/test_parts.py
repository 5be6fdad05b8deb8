"""An evaluation that is stopped goes on where it was, and ends in the same bits."""

import errno
import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluation import make_run

from litcam.data import DigitScenesDataModule
from litcam.data.batch import collate
from litcam.errors import InputError
from litcam.evaluation import evaluate
from litcam.evaluation.parts import Parts
from litcam.lock import only_writer

METHODS = ("agcam", "relevance", "random")
METRICS = ("localization", "segmentation", "pxap", "max_box_acc", "perturbation", "adcc")
ARGUMENTS: dict[str, Any] = {"explainers": ["center"], "metrics": ["localization"]}


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

    def add_two(self: Parts, number: int, arrays: Any) -> None:
        if number == 2:
            raise Stopped
        add(self, number, arrays)

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


def resave(path: Path, **changes: Any) -> None:
    """Write a part again, its zip whole, with other arrays in it."""
    with np.load(path) as stored:
        arrays: dict[str, Any] = {name: stored[name] for name in stored.files} | changes
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})


def flip_a_byte(path: Path) -> None:
    """Damage the middle of a file, which a zip notices by its CRC."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "torn": lambda part, other: part.write_bytes(part.read_bytes()[:-100]),
    "empty": lambda part, other: part.write_bytes(b""),
    "wrong crc": lambda part, other: flip_a_byte(part),
    "no zip": lambda part, other: part.write_text("a page of text"),
    "an array alone": lambda part, other: part.write_bytes(npy(np.zeros(3))),
    "missing": lambda part, other: part.unlink(),
    "the next part twice": lambda part, other: shutil.copy(part.with_name("000002.npz"), part),
    "of other weights": lambda part, other: shutil.copy(other, part),
    "an array missing": lambda part, other: resave(part, **{"0.degenerate": None}),
    "an array more": lambda part, other: resave(part, more=np.zeros(3)),
    "other shape": lambda part, other: resave(part, **{"0.maps": np.zeros((4, 8, 7), dtype=np.float16)}),
    "other dtype": lambda part, other: resave(part, **{"0.maps": np.zeros((4, 8, 8))}),
    "indices NaN": lambda part, other: resave(part, index=np.full(4, np.nan)),
    "images twice": lambda part, other: resave(part, index=np.array([4, 4, 5, 5])),
    "no seal": lambda part, other: resave(part, seal=None),
}


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path, bytes, Path]:
    """A module and data, their parts, the results, and the parts with other weights."""
    module, data = make_run()
    folder = tmp_path_factory.mktemp("measured")
    with torch.no_grad():
        module.net.head.bias.add_(1.0)
        evaluate(module, data, **ARGUMENTS, folder=folder / "other")
        module.net.head.bias.sub_(1.0)
    found = evaluate(module, data, **ARGUMENTS, folder=folder / "parts")
    return module, data, folder / "parts", json.dumps(found.results).encode(), folder / "other"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_part_that_is_not_what_was_measured_is_measured_again_and_said(
    measured: Any, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data, source, results, other = measured
    parts = shutil.copytree(source, tmp_path / "parts")
    DAMAGES[damage](parts / "000001.npz", other / "000001.npz")
    scenes, read = type(data.dataset("val")), list[int]()
    get = scenes.__getitem__
    monkeypatch.setattr(scenes, "__getitem__", lambda self, index: read.append(index) or get(self, index))
    again = evaluate(module, data, **ARGUMENTS, folder=parts)
    assert read == [4, 5, 6, 7]
    assert json.dumps(again.results).encode() == results
    said = capsys.readouterr().err
    if damage == "missing":
        assert "measured again" not in said
    else:
        assert f"1 of the parts in {parts} are damaged or were not measured by this evaluation (000001.npz)" in said


def test_parts_beyond_the_plan_count_for_nothing_and_files_of_others_stay(
    measured: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, data, source, results, _ = measured
    parts = shutil.copytree(source, tmp_path / "parts")
    for name in ("000003.npz", "000017.npz", "000001 (copy).npz", "1.npz", "notes.txt"):
        shutil.copy(parts / "000001.npz", parts / name)
    (parts / ".123-456.partial").write_text("half a part")
    found = evaluate(module, data, **ARGUMENTS, folder=parts)
    assert json.dumps(found.results).encode() == results
    assert found.results["num_images"] == len(found.images) == 11
    assert "2 of the parts" in capsys.readouterr().err
    kept = {"000000.npz", "000001.npz", "000002.npz", "000001 (copy).npz", "1.npz", "notes.txt", "plan.json"}
    assert {path.name for path in parts.iterdir()} == kept


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{}"])
def test_a_plan_that_is_torn_or_another_one_takes_its_parts_with_it(
    measured: Any, tmp_path: Path, content: bytes
) -> None:
    module, data, source, results, _ = measured
    parts = shutil.copytree(source, tmp_path / "parts")
    (parts / "000000.npz").write_bytes(b"of another plan")
    (parts / "notes.txt").write_text("mine")
    plan = (parts / "plan.json").read_bytes()
    (parts / "plan.json").write_bytes(content)
    found = evaluate(module, data, **ARGUMENTS, folder=parts)
    assert json.dumps(found.results).encode() == results
    assert (parts / "plan.json").read_bytes() == plan
    assert (parts / "notes.txt").read_text() == "mine"


def test_maps_of_parts_that_another_evaluation_has_replaced_are_refused(measured: Any, tmp_path: Path) -> None:
    module, data, *_ = measured
    first = evaluate(module, data, **ARGUMENTS, folder=tmp_path)
    maps = first.maps("center")
    evaluate(module, data, **ARGUMENTS, folder=tmp_path)
    np.testing.assert_array_equal(first.maps("center"), maps)
    (tmp_path / "000001.npz").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"000001.npz is not any more what was measured"):
        first.maps("center")
    evaluate(module, data, ["uniform"], ["localization"], folder=tmp_path)
    with pytest.raises(InputError, match=f"Another evaluation has taken the folder {tmp_path}"):
        first.maps("center")


def test_in_one_process_too_one_evaluation_at_a_time_has_the_folder(measured: Any, tmp_path: Path) -> None:
    module, data, *_ = measured
    with only_writer(tmp_path), pytest.raises(InputError, match=r"is being written by process \d+ \(this one\)"):
        evaluate(module, data, **ARGUMENTS, folder=tmp_path)
    found, refused = [], []

    def work() -> None:
        try:
            found.append(evaluate(module, data, **ARGUMENTS, folder=tmp_path).results["num_images"])
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) + len(refused) == 4
    assert found
    assert set(found) == {11}
    assert all("is being written" in error for error in refused)


class OtherBatches(DigitScenesDataModule):
    """Gives batches of these sizes, whatever it is asked for."""

    of_batches = (4, 4)

    def evaluation_dataloader(self, split: Any, indices: Any = None) -> Any:
        return [collate([self.dataset(split)[index] for index in range(size)]) for size in self.of_batches]


@pytest.mark.parametrize(("sizes", "given"), [((8, 8), 8), ((4, 3), 3), ((4,), 0)])
def test_more_or_fewer_images_than_planned_are_no_result(sizes: tuple[int, ...], given: int) -> None:
    module, _ = make_run()
    data = OtherBatches(num_val=8, batch_size=4, num_workers=0)
    data.of_batches = sizes
    data.use_data_config(module.data_config)
    with pytest.raises(InputError, match=f"gave {given} images in a batch of 4"):
        evaluate(module, data, **ARGUMENTS)


def test_a_full_disk_is_one_sentence_and_leaves_the_parts_before_it(
    measured: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data, _, results, _ = measured
    write = Path.write_bytes

    def fill(self: Path, content: bytes) -> int:
        if len(list(tmp_path.glob("0*.npz"))) == 2:
            write(self, content[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        message = (
            f"{tmp_path / '000002.npz'} cannot be written .No space left on device.; make room there and start again"
        )
        with pytest.raises(InputError, match=message):
            evaluate(module, data, **ARGUMENTS, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.npz", "000001.npz", "plan.json"]
    assert json.dumps(evaluate(module, data, **ARGUMENTS, folder=tmp_path).results).encode() == results


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    batches = [[0, 1], [2, 3]]
    parts = Parts(tmp_path / "parts", {"a": 1}, batches)
    numbers = {"x": np.array([0.1, 0.2]), "whole": np.array([0.0, 3.0]), "names": np.array(["ä", "b"])}
    parts.add(0, numbers)
    parts.add(1, {**numbers, "x": np.array([np.nan])})
    assert parts.missing == []
    assert Parts(tmp_path / "parts", {"a": 1}, batches).missing == []
    np.testing.assert_array_equal(parts.collect("x")["x"], [0.1, 0.2, np.nan])
    assert parts.collect("names")["names"].tolist() == ["ä", "b"] * 2
    assert parts.collect("whole")["whole"].tolist() == [0, 3] * 2
    assert Parts(tmp_path / "parts", {"a": 2}, batches).missing == [0, 1]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        Parts(tmp_path / "file" / "parts", {}, [])
