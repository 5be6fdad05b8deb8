"""What the page says first: does the model look at the right thing, which explanation holds, where does it go wrong?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litcam.report.contents import ReportImage, ReportRun
from litcam.report.numbers import lower_is_better, number, per_cent, spoken
from litcam.report.tables import Entry, clear_of, rows_of, scores_of

HEADLINES = {  # the score of the first answer, the easiest to read first
    "pointing_game": "of the maps of {method} peak on the object",
    "mask_pointing_game": "of the maps of {method} peak on the object",
    "energy_inside": "of the map of {method} lies on the object",
    "mask_energy_inside": "of the map of {method} lies on the object",
    "iou": "IoU of the boxes that {method} finds with the true ones",
    "mask_iou": "IoU of the region that {method} finds with the true one",
}
MOST_CONFUSIONS = 3


@dataclass(frozen=True)
class Bar:
    """A method in a small chart; positions are per cent of the chart's width."""

    method: str
    control: bool
    text: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Looking:
    """Whether the maps lie on the objects: the best method of one score, beside all others."""

    score: str
    figure: str
    words: str
    verdict: str
    good: bool
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Standing:
    """How many scores of a method are clear of every control, and in how many it is the best."""

    method: str
    clear: int
    compared: int
    best: int

    @property
    def share(self) -> float:
        """Of the scores that can be compared, in per cent."""
        return 100 * self.clear / self.compared if self.compared else 0.0


@dataclass(frozen=True)
class Failures:
    """Where the images go wrong: counts of the gallery."""

    images: int
    wrong: int
    kinds: Sequence[tuple[str, int]]
    confusions: Sequence[tuple[str, str, int]]


@dataclass(frozen=True)
class Summary:
    """The three answers; None where nothing was measured."""

    looking: Looking | None
    standings: Sequence[Standing]
    with_controls: bool
    failures: Failures | None


def summarize(run: ReportRun) -> Summary:
    """The three answers of a run."""
    standings = _standings(run.results)
    compared = any(standing.compared for standing in standings)
    return Summary(_looking(run.results), standings, compared, _failures(run.images))


def _looking(results: Mapping[str, Any]) -> Looking | None:
    scores, rows = scores_of(results), rows_of(results)
    controls = {row.method for row in rows if row.control}
    for score, words in HEADLINES.items():
        entries = scores.get(score, {})
        methods = {method: entry for method, entry in entries.items() if method not in controls}
        if not methods:
            continue
        best = max(methods, key=lambda method: methods[method].value)
        verdict, good = _verdict(methods[best], {name: entries[name] for name in controls & entries.keys()})
        figure = number(methods[best].value) if "iou" in score else per_cent(methods[best].value)
        ranked = sorted(entries, key=lambda method: -entries[method].value)
        bars = [_bar(method, entries[method], method in controls) for method in ranked]
        return Looking(spoken(score), figure, words.format(method=best), verdict, good, bars)
    return None


def _bar(method: str, entry: Entry, control: bool) -> Bar:
    value, low, high = (round(100 * min(max(x, 0.0), 1.0), 1) for x in (entry.value, entry.low, entry.high))
    return Bar(method, control, number(entry.value), value, low, high)


def _verdict(entry: Entry, controls: Mapping[str, Entry]) -> tuple[str, bool]:
    if not controls:
        return "no control to compare with", False
    name, best = max(controls.items(), key=lambda item: item[1].value)
    if clear_of(entry, best, lower=False):
        return f"clear of every control; the best of them, {name}, has {number(best.value)}", True
    place = "not above" if entry.value <= best.value else "not clear of"
    return f"{place} the control {name}, which has {number(best.value)}", False


def _standings(results: Mapping[str, Any]) -> list[Standing]:
    """Methods, the one with most scores clear of every control first."""
    scores, rows = scores_of(results), rows_of(results)
    controls = [row.method for row in rows if row.control]
    methods = [row.method for row in rows if not row.control]
    clear, compared, best = Counter[str](), Counter[str](), Counter[str]()
    for score, entries in scores.items():
        lower = lower_is_better(score)
        values = [entries[method].value for method in methods if method in entries]
        top = (min if lower else max)(values) if len(values) > 1 else None
        baseline = [entries[control] for control in controls if control in entries]
        for method in methods:
            if method not in entries:
                continue
            best[method] += entries[method].value == top
            if baseline:
                compared[method] += 1
                clear[method] += all(clear_of(entries[method], control, lower) for control in baseline)
    standings = [Standing(method, clear[method], compared[method], best[method]) for method in methods]
    measured = [row for row in standings if any(row.method in entries for entries in scores.values())]
    return sorted(measured, key=lambda row: (-row.share, -row.best))


def _failures(images: Sequence[ReportImage]) -> Failures | None:
    if not images:
        return None
    wrong = [image for image in images if not image.correct]
    kinds = Counter(kind for image in images for kind in image.kinds)
    pairs = Counter((image.label, image.predicted) for image in wrong)
    confusions = [(label, predicted, count) for (label, predicted), count in pairs.most_common(MOST_CONFUSIONS)]
    return Failures(len(images), len(wrong), kinds.most_common(), confusions)
