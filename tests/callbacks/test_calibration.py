"""Limits from sound runs: by hand, against a slow oracle and by simulation; and the tables that hold such runs."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from litcam.callbacks.calibration import Calibration, calibrate, read_sound_runs
from litcam.callbacks.shortcut_statistics import FOREGROUND_SENSITIVITY, POINTING, PROFILE, SUSPICIOUS
from litcam.errors import InputError

PREFIX = "val/agcam/alarm/"


def epoch(accuracy: float = 0.9, **values: float) -> dict[str, float]:
    return {"accuracy": accuracy, **values}


def gaussian_runs(count: int, validations: int, names: Sequence[str], seed: int) -> list[list[dict[str, float]]]:
    """Sound runs, each with a level of its own around which its validations vary."""
    rng = np.random.default_rng(seed)
    values = 0.8 * rng.normal(size=(count, 1, len(names))) + 0.6 * rng.normal(size=(count, validations, len(names)))
    return [[epoch(**dict(zip(names, row, strict=True))) for row in run] for run in values.tolist()]


def oracle(runs: list[list[dict[str, float]]], suspicious: dict[str, int], rank: int) -> dict[str, float]:
    """The limits, from the ``rank``-th smallest score; one number after the other."""
    scores = []
    for left_out, run in enumerate(runs):
        deviations = []
        for name, sign in suspicious.items():
            everything = [one[name] for other in runs for one in other]
            others = [one[name] for number, other in enumerate(runs) if number != left_out for one in other]
            spread = max(statistics.stdev(others), statistics.stdev(everything) / 2)
            deviations += [sign * (one[name] - statistics.mean(others)) / spread for one in run]
        scores.append(max(deviations))
    limit = sorted(scores)[rank - 1]
    limits = {}
    for name, sign in suspicious.items():
        everything = [one[name] for run in runs for one in run]
        limits[name] = statistics.mean(everything) + sign * limit * statistics.stdev(everything)
    return limits


# Limits.


def test_one_statistic_by_hand() -> None:
    """Of 1, 2 and 6 (mean 3, deviation √7) the last is 4.5 above the mean of the others, which is 9/√7 times √7/2."""
    runs = [[epoch(a=2.0)], [epoch(a=6.0)], [epoch(a=1.0)]]
    found = calibrate(runs, {"a": 1}, 0.25)
    assert found.typical == {"a": pytest.approx(3)}
    assert found.limits == {"a": pytest.approx(12)}
    assert (found.num_runs, found.false_alarms) == (3, 0.25)
    # The second score is that of 2, below the mean of the others: then the limit is just above the typical value.
    second = calibrate(runs, {"a": 1}, 0.5)
    assert second.limits["a"] == pytest.approx(3, abs=1e-5)
    assert second.limits["a"] > second.typical["a"]
    # Where low values are suspicious the same scores are those of the mirrored values.
    mirrored = calibrate([[epoch(a=-one["a"]) for one in run] for run in runs], {"a": -1}, 0.25)
    assert mirrored.limits == {"a": pytest.approx(-12)}


def test_two_statistics_with_opposite_sides_share_the_worst_score() -> None:
    """The first run has a suspicious b, the third a suspicious a, either as far out as 6 of 1, 2, 6 above."""
    runs = [[epoch(a=1.0, b=-6.0)], [epoch(a=2.0, b=-1.0)], [epoch(a=6.0, b=-2.0)]]
    for false_alarms in (0.25, 0.5):  # the second and the third score are equal
        found = calibrate(runs, {"a": 1, "b": -1}, false_alarms)
        assert found.typical == {"a": pytest.approx(3), "b": pytest.approx(-3)}
        assert found.limits == {"a": pytest.approx(12), "b": pytest.approx(-12)}
    # With the sides exchanged the worst are a = 1 below the mean 4 of 2 and 6, and b = -1 above that of -6 and -2.
    other = calibrate(runs, {"a": -1, "b": 1}, 0.25)
    assert other.limits == {"a": pytest.approx(3 - 3 * math.sqrt(7 / 8)), "b": pytest.approx(-3 + 3 * math.sqrt(7 / 8))}


def test_of_several_validations_the_worst_is_the_runs_score() -> None:
    runs = [[epoch(a=2.0), epoch(a=2.0)], [epoch(a=1.0), epoch(a=6.0)], [epoch(a=1.0)]]
    found = calibrate(runs, {"a": 1}, 0.25)
    # Of all: 2, 2, 1, 6, 1 has mean 2.4 and variance (0.16 + 0.16 + 1.96 + 12.96 + 1.96)/4 = 4.3. Of the others of 6:
    # mean 5/3, deviation √(1/3), which is below √4.3/2.
    assert found.typical["a"] == pytest.approx(2.4)
    assert found.limits["a"] == pytest.approx(2.4 + 2 * (6 - 5 / 3))


@pytest.mark.parametrize(("count", "rank", "promised"), [(19, 19, 0.05), (20, 20, 1 / 21), (39, 38, 0.05)])
def test_the_limit_is_the_kth_smallest_score(count: int, rank: int, promised: float) -> None:
    suspicious = {"low": -1, "high": 1}
    runs = gaussian_runs(count, 3, list(suspicious), seed=count)
    found = calibrate(runs, suspicious, 0.05)
    assert found.limits == pytest.approx(oracle(runs, suspicious, rank))
    assert found.false_alarms == pytest.approx(promised)
    assert found.num_runs == count
    assert found.limits != pytest.approx(oracle(runs, suspicious, rank - 1)), "the next score is another one"


def test_the_order_of_the_runs_and_of_the_statistics_does_not_matter() -> None:
    runs = gaussian_runs(20, 2, ("a", "b"), seed=0)
    found = calibrate(runs, {"a": 1, "b": -1})
    other = calibrate([run[::-1] for run in runs[::-1]], {"b": -1, "a": 1})
    assert other.limits == pytest.approx(found.limits)
    assert other.typical == pytest.approx(found.typical)


def test_validations_below_the_least_accuracy_are_left_out_and_so_are_runs_without_any_other() -> None:
    runs = gaussian_runs(20, 2, ("a",), seed=0)
    early = [epoch(accuracy=0.59, a=1000.0)]
    with_early = [[*early, *run] for run in runs] + [early, []]
    assert calibrate(with_early, {"a": 1}, 0.05, 0.6) == calibrate(runs, {"a": 1}, 0.05, 0.6)
    assert calibrate(with_early, {"a": 1}, 0.05, 0.59).limits["a"] > 1000, "what reaches it counts"


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_of_further_sound_runs_no_more_call_than_promised(names: tuple[str, ...]) -> None:
    """And not far fewer, for limits that nothing reaches would promise as much."""
    suspicious = {name: -1 if name == "b" else 1 for name in names}
    alarms, repetitions = 0, 2000
    for seed in range(repetitions):
        *sound, fresh = gaussian_runs(21, 2, names, seed)
        calibration = calibrate(sound, suspicious)
        alarms += any(level >= 1 for one in fresh for level in calibration.levels(one).values())
    promised = calibration.false_alarms
    assert promised == pytest.approx(1 / 21)
    assert promised / 2 < alarms / repetitions <= promised


def test_coarse_statistics_of_which_runs_have_the_same_keep_the_promise() -> None:
    alarms = 0
    for seed in range(1000):
        *sound, fresh = [
            [epoch(a=round(2 * one["a"]) / 2) for one in run] for run in gaussian_runs(21, 1, ("a",), seed)
        ]
        alarms += max(calibrate(sound, {"a": 1}).levels(fresh[0]).values()) >= 1
    assert 0.01 < alarms / 1000 <= 1 / 21


def test_levels_are_0_at_the_typical_value_and_1_at_the_limit() -> None:
    calibration = Calibration({"high": 2.0, "low": 0.5}, {"high": 4.0, "low": -0.5}, 20, 0.05)
    assert calibration.levels({"high": 2.0, "low": 0.5, "other": 9.0}) == {"high": 0.0, "low": 0.0}
    assert calibration.levels({"high": 4.0, "low": -0.5}) == {"high": 1.0, "low": 1.0}
    assert calibration.levels({"high": 1.0, "low": -1.5}) == {"high": -0.5, "low": 2.0}
    assert math.isnan(calibration.levels({"high": math.nan, "low": 0.0})["high"])


def test_a_statistic_that_never_changes_calls_as_soon_as_it_does_and_does_not_silence_the_others() -> None:
    runs = [[epoch(a=one["a"], same=0.3) for one in run] for run in gaussian_runs(20, 1, ("a",), seed=0)]
    found, alone = calibrate(runs, {"a": 1, "same": -1}), calibrate(runs, {"a": 1})
    assert found.limits["a"] == pytest.approx(alone.limits["a"])
    levels = found.levels({"a": alone.typical["a"], "same": 0.2999})
    assert levels["a"] == pytest.approx(0)
    assert levels["same"] > 1
    runs[4][0]["same"] = 0.28  # a single run that differs
    limit = calibrate(runs, {"a": 1, "same": -1}).limits["a"]
    # It lies d below the others, whose spread is nothing; the spread of all is d/√20, of which at least half counts.
    spread = statistics.stdev(one["a"] for run in runs for one in run)
    assert limit == pytest.approx(alone.typical["a"] + 2 * math.sqrt(20) * spread)


def test_two_runs_and_one_are_enough_for_chances_that_large() -> None:
    assert calibrate([[epoch(a=1.0)], [epoch(a=2.0)]], {"a": 1}, 0.4).limits["a"] > 2
    alone = calibrate([[epoch(a=1.0)]], {"a": 1}, 0.5)
    assert alone.typical == {"a": 1.0}
    assert alone.levels({"a": 1.01})["a"] > 1


def test_too_few_runs_are_refused_with_the_least_chance_they_can_promise() -> None:
    runs = gaussian_runs(18, 1, ("a",), seed=0)
    with pytest.raises(InputError, match=r"0\.05, but 18 sound runs whose accuracy reaches 0\.5 .* less than 0\.053"):
        calibrate(runs, {"a": 1})
    assert calibrate(runs, {"a": 1}, 0.053).false_alarms == pytest.approx(1 / 19)
    with pytest.raises(InputError, match=r"but 0 sound runs whose accuracy reaches 0\.95"):
        calibrate(runs, {"a": 1}, 0.05, 0.95)


@pytest.mark.parametrize("false_alarms", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_chance_that_is_none_is_refused(false_alarms: float) -> None:
    runs = gaussian_runs(20, 1, ("a",), seed=0)
    with pytest.raises(InputError, match=r"false_alarms is .*; it has to lie between 0 and 1"):
        calibrate(runs, {"a": 1}, false_alarms)


@pytest.mark.parametrize("value", [{}, {"a": math.nan}, {"a": math.inf}])
def test_a_run_without_a_statistic_is_refused(value: dict[str, float]) -> None:
    runs = gaussian_runs(20, 1, ("a",), seed=0)
    runs[3] = [epoch(**value)]
    with pytest.raises(InputError, match="A statistic of a sound run is not a number"):
        calibrate(runs, {"a": 1})


# Tables.


@pytest.mark.parametrize("explainer", ["agcam", "evidence", "legrad", "generic_attention", "rollout"])
def test_the_calibration_that_ships_with_litcam_knows_the_explainers(explainer: str) -> None:
    runs = read_sound_runs("shipped", f"val/{explainer}/alarm/", list(SUSPICIOUS))
    assert len(runs) >= 19
    assert all(set(one) == {"accuracy", *SUSPICIOUS} and 0 <= one["accuracy"] <= 1 for run in runs for one in run)
    for names in ([POINTING, FOREGROUND_SENSITIVITY], [PROFILE]):
        found = calibrate(runs, {name: SUSPICIOUS[name] for name in names})
        assert 0 < found.false_alarms <= 0.05
    assert found.limits[PROFILE] > found.typical[PROFILE] > 0


def table(rows: int, **columns: object) -> pd.DataFrame:
    """As RunSummary writes it: with columns that have nothing to do with the alarm."""
    numbers = {PREFIX + name: [float(10 * row + place) for row in range(rows)] for place, name in enumerate("xy")}
    return pd.DataFrame({"epoch": range(rows), "val/loss": 1.0, **numbers, PREFIX + "accuracy": 0.75, **columns})


def test_a_run_folder_is_read_from_its_history(tmp_path: Path) -> None:
    table(2).to_csv(tmp_path / "history.csv", index=False)
    expected = [[{"accuracy": 0.75, "y": 1.0, "x": 0.0}, {"accuracy": 0.75, "y": 11.0, "x": 10.0}]]
    assert read_sound_runs(str(tmp_path), PREFIX, ["y", "x"]) == expected
    assert read_sound_runs([str(tmp_path)], PREFIX, ["y", "x"]) == expected
    assert read_sound_runs(str(tmp_path / "history.csv"), PREFIX, ["y", "x"]) == expected


def test_a_table_of_several_runs_is_told_apart_by_its_column_run_and_sources_add_up(tmp_path: Path) -> None:
    table(5, run=["b", "a", "b", "a", "c"]).to_csv(tmp_path / "several.csv", index=False)
    (tmp_path / "folder").mkdir()
    table(1).to_csv(tmp_path / "folder" / "history.csv", index=False)
    runs = read_sound_runs([str(tmp_path / "several.csv"), str(tmp_path / "folder")], PREFIX, ["x"])
    assert [[one["x"] for one in run] for run in runs] == [[0, 20], [10, 30], [40], [0]]


def test_validations_without_a_statistic_are_left_out(tmp_path: Path) -> None:
    frame = table(4)
    frame.loc[1, PREFIX + "x"] = math.nan
    frame.loc[2, "val/loss"] = math.nan
    frame.to_csv(tmp_path / "history.csv", index=False)
    [run] = read_sound_runs(str(tmp_path), PREFIX, ["x"])
    assert [one["x"] for one in run] == [0, 20, 30]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere cannot be read as the history of sound runs .*No such file"):
        read_sound_runs([str(tmp_path / "nowhere")], PREFIX, ["x"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/history\.csv cannot be read .* takes folders of runs"):
        read_sound_runs(str(tmp_path / "empty"), PREFIX, ["x"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n\xff\xfe\x00" * 20,
        b'a,b\n"1,2\n3',
        b"a,b\n1\n1,2,3,4\n",
        b"val/agcam/alarm/accuracy,val/agcam/alarm/x\nhigh,1.0\n",
        b"val/agcam/alarm/accuracy,val/agcam/alarm/x\n0.9,none at all\n",
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.csv cannot be read as the history of sound runs"):
        read_sound_runs(str(tmp_path / "broken.csv"), PREFIX, ["x"])


def test_what_a_table_lacks_and_what_it_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"has no val/random/alarm/accuracy, .* it knows agcam, evidence, .*rollout\. "
    ):
        read_sound_runs("shipped", "val/random/alarm/", [POINTING])
    frame = table(2, **{"val/rollout/alarm/mask_accuracy": 1.0})
    frame.to_csv(tmp_path / "history.csv", index=False)
    with pytest.raises(InputError, match=r"history\.csv has no val/agcam/alarm/z; it knows agcam, rollout \(masks\)\."):
        read_sound_runs(str(tmp_path), PREFIX, ["x", "z"])
    table(2).drop(columns=PREFIX + "accuracy").to_csv(tmp_path / "history.csv", index=False)
    with pytest.raises(InputError, match="it knows nothing of ShortcutAlarm"):
        read_sound_runs(str(tmp_path), PREFIX, ["x"])
