"""Line charts as paths for inline SVG: perturbation curves of each method, and drift over checkpoints."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litcam.report.contents import Drift
from litcam.report.numbers import finite, lower_is_better, number, spoken
from litcam.report.tables import Row, rows_of, scores_of

CURVES = {
    "lerf": "least relevant pixels removed first",
    "morf": "most relevant pixels removed first",
    "insertion": "most relevant pixels inserted first",
    "deletion": "most relevant pixels removed first",
    "positive": "most relevant pixels removed first",
    "negative": "least relevant pixels removed first",
}
MOST_LISTED = 11  # points of a curve that are listed as numbers
MARKERS = ("circle", "square", "triangle", "diamond", "cross")
COLOURS = 10

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Frame:
    """The drawing area of a chart, in the units of its viewBox, and the ranges of its axes."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: int = 270
    height: int = 190
    left: int = 34
    right: int = 10
    top: int = 18
    bottom: int = 34

    def x(self, value: float) -> float:
        """Where a value of the horizontal axis lies."""
        low, high = self.x_range
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.left + share * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        """Where a value of the vertical axis lies."""
        low, high = self.y_range
        return round(self.top + (high - value) / (high - low) * (self.height - self.top - self.bottom), 1)

    @property
    def x_ticks(self) -> list[float]:
        """Round numbers of the horizontal axis."""
        return ticks(*self.x_range)

    @property
    def y_ticks(self) -> list[float]:
        """Round numbers of the vertical axis."""
        return ticks(*self.y_range)

    def path(self, points: Points) -> str:
        """A line through points."""
        return "M" + "L".join(f"{self.x(x)},{self.y(y)}" for x, y in points) if points else ""

    def area(self, upper: Points, lower: Points) -> str:
        """The area between two lines."""
        return f"{self.path([*upper, *reversed(lower)])}Z" if upper and lower else ""


@dataclass(frozen=True)
class Line:
    """One curve of one method."""

    name: str
    slot: int
    path: str
    band: str
    values: Sequence[float | None]


@dataclass(frozen=True)
class Panel:
    """The curves of one method, with those of the other methods behind."""

    row: Row
    lines: Sequence[Line]
    gap: str
    others: Sequence[str]
    scores: Sequence[tuple[str, str]]
    label: str


@dataclass(frozen=True)
class Legend:
    """A curve's name and what it means."""

    name: str
    slot: int
    words: str
    lower: bool


@dataclass(frozen=True)
class CurveFigure:
    """The perturbation curves of one metric, a panel for each method; all panels have the same axes."""

    name: str
    protocol: str
    frame: Frame
    panels: Sequence[Panel]
    legend: Sequence[Legend]
    points: Sequence[float]
    listed: Sequence[int]


@dataclass(frozen=True)
class DriftLine:
    """One method over the checkpoints."""

    method: str
    control: bool
    colour: int
    marker: str
    path: str
    points: Points
    values: Sequence[float | None]


@dataclass(frozen=True)
class DriftPanel:
    """One way to compare the maps of successive checkpoints."""

    name: str
    frame: Frame
    lines: Sequence[DriftLine]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them."""
    span = high - low
    if span <= 0:
        return [low]
    size = 10 ** math.floor(math.log10(span / count))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def curve_figures(results: Mapping[str, Any]) -> list[CurveFigure]:
    """A figure for each metric that has curves."""
    curves: Mapping[str, Mapping[str, Any]] = results.get("curves") or {}
    metrics = list(dict.fromkeys(metric for by_metric in curves.values() for metric in by_metric))
    return [_curve_figure(results, metric) for metric in metrics]


def _curve_figure(results: Mapping[str, Any], metric: str) -> CurveFigure:
    rows = [row for row in rows_of(results) if metric in (results["curves"].get(row.method) or {})]
    given = {row.method: results["curves"][row.method][metric] for row in rows}
    points = list(next(iter(given.values()))["points"]) if given else []
    names = list(dict.fromkeys(name for fields in given.values() for name in fields["curves"]))
    every = [
        value
        for fields in given.values()
        for curve in fields["curves"].values()
        for key in ("value", "low", "high")
        for value in map(finite, curve.get(key) or ())
        if value is not None
    ]
    frame = Frame((min([0, *points]), max([*points, 1])), _padded(every))
    slots = list(enumerate(names))
    lines = {
        method: [_line(frame, fields, name, names.index(name)) for name in fields["curves"]]
        for method, fields in given.items()
    }
    listed = sorted({round(i * (len(points) - 1) / (MOST_LISTED - 1)) for i in range(MOST_LISTED)}) if points else []
    panels = [_panel(frame, results, metric, row, given, lines) for row in rows]
    legend = [Legend(spoken(name), slot, CURVES.get(name, ""), lower_is_better(name)) for slot, name in slots]
    protocol = str((results.get("protocols") or {}).get(metric, ""))
    return CurveFigure(spoken(metric), protocol, frame, panels, legend, points, listed)


def _panel(
    frame: Frame,
    results: Mapping[str, Any],
    metric: str,
    row: Row,
    given: Mapping[str, Mapping[str, Any]],
    lines: Mapping[str, Sequence[Line]],
) -> Panel:
    own = given[row.method]
    pairs = [_pairs(own["points"], curve.get("value")) for curve in own["curves"].values()]
    gap = frame.area(pairs[0], pairs[1]) if len(pairs) == 2 else ""
    others = [line.path for method, known in lines.items() if method != row.method for line in known]
    scores = [
        (spoken(score), number(entries[row.method].value))
        for score, entries in scores_of(results).items()
        if row.method in entries and results["methods"][row.method][score].get("metric") == metric
    ]
    ends = [f"{spoken(name)} from {_end(curve, 0)} to {_end(curve, -1)}" for name, curve in own["curves"].items()]
    return Panel(row, lines[row.method], gap, others, scores, f"{row.method}: {'; '.join(ends)}")


def _line(frame: Frame, fields: Mapping[str, Any], name: str, slot: int) -> Line:
    points, curve = fields["points"], fields["curves"][name]
    value = list(map(finite, curve.get("value") or ()))
    band = frame.area(_pairs(points, curve.get("high")), _pairs(points, curve.get("low")))
    return Line(spoken(name), slot, frame.path(_pairs(points, value)), band, value)


def _pairs(points: Sequence[float], values: Sequence[Any] | None) -> list[tuple[float, float]]:
    """Points of a curve that have a value."""
    known = zip(points, map(finite, values or ()), strict=False)
    return [(x, y) for x, y in known if y is not None]


def _end(curve: Mapping[str, Any], place: int) -> str:
    values = curve.get("value") or [None]
    return number(finite(values[place]))


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """A range from a round number at or below 0 to one above all values; [0, 1] for most shares."""
    if not values:
        return 0.0, 1.0
    low, high = min([0.0, *values]), max(values)
    if low == 0 and 0.5 < high <= 1:
        return 0.0, 1.0
    step = ticks(low, high if high > low else low + 1)
    size = step[1] - step[0] if len(step) > 1 else 1.0
    return math.floor(low / size + 1e-9) * size, max(math.ceil(high / size - 1e-9) * size, low + size)


def drift_panels(drift: Drift, controls: Sequence[str]) -> list[DriftPanel]:
    """Correlation and IoU with the checkpoint before, a line for each method."""
    methods = [method for method in dict.fromkeys([*drift.correlation, *drift.iou]) if method not in controls]
    panels = []
    for name, series in (("correlation of the maps", drift.correlation), ("IoU of the maps > 0.5", drift.iou)):
        known = [value for values in series.values() for value in map(finite, values) if value is not None]
        if known:
            frame = Frame((2, max(len(drift.names), 2)), (min(0.0, _padded(known)[0]), 1.0), width=460, height=250)
            lines = [_drift_line(frame, methods, method, values) for method, values in series.items()]
            panels.append(DriftPanel(name, frame, lines))
    return panels


def _drift_line(frame: Frame, methods: Sequence[str], method: str, values: Sequence[float]) -> DriftLine:
    """The line of one method; those of ``methods`` have colours and markers by their place, controls none."""
    place = methods.index(method) if method in methods else 0
    pairs = _pairs(range(2, len(values) + 2), values)
    drawn = [(frame.x(x), frame.y(y)) for x, y in pairs]
    marker = MARKERS[place % len(MARKERS)]
    shown = list(map(finite, values))
    return DriftLine(method, method not in methods, place % COLOURS, marker, frame.path(pairs), drawn, shown)
