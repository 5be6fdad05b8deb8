"""The table of methods and scores: its columns, cells and notes, ready for the template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litcam.report.numbers import finite, lower_is_better, method_parts, number, spoken

COST = {"ms_per_image": "ms per image", "forwards": "forwards"}
REASONS = {
    "degenerate": "degenerate maps",
    "without_region": "without a true region",
    "wrong_predictions": "wrong predictions",
}


@dataclass(frozen=True)
class Entry:
    """A value between the ends of its interval, where it has one."""

    value: float
    low: float
    high: float
    num_images: int | None

    @property
    def half(self) -> float:
        """Half the interval's width; 0 without interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Cell:
    """An entry of one method; positions are per cent of the column's own range."""

    entry: Entry
    text: str
    half: str
    title: str
    best: bool
    bar: Mapping[str, float]
    change: str


@dataclass(frozen=True)
class Column:
    """A score, and what each method has of it."""

    name: str
    key: str
    lower: bool
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Group:
    """The columns of one metric, and in a sentence how their numbers come about."""

    name: str
    columns: Sequence[Column]
    note: str = ""
    left_out: Sequence[str] = ()
    number: int | None = None


@dataclass(frozen=True)
class Row:
    """A method."""

    method: str
    name: str
    options: str
    control: bool


def rows_of(results: Mapping[str, Any]) -> list[Row]:
    """The methods, controls last."""
    controls = set(results.get("controls") or ())
    rows = [Row(method, *method_parts(method), method in controls) for method in results.get("methods") or {}]
    return sorted(rows, key=lambda row: row.control)


def scores_of(results: Mapping[str, Any]) -> dict[str, dict[str, Entry]]:
    """Score → method → entry, in the order of their first appearance; the count of degenerate maps is no score."""
    scores: dict[str, dict[str, Entry]] = {}
    for method, entries in (results.get("methods") or {}).items():
        for score, fields in entries.items():
            entry = _entry(fields)
            if entry is not None and score != "degenerate":
                scores.setdefault(score, {})[method] = entry
    return scores


def clear_of(entry: Entry, other: Entry, lower: bool) -> bool:
    """Whether an entry is better than another and their intervals do not overlap."""
    return entry.high < other.low if lower else entry.low > other.high


def groups_of(results: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> list[Group]:
    """The columns of the table by metric, then degenerate maps and cost.

    Args:
        results: of a run.
        first: results of the run that the others are compared with.
    """
    controls = set(results.get("controls") or ())
    earlier = {} if first is None else scores_of(first)
    metrics = _metrics(results)
    members: dict[str, list[Column]] = {}
    for score, entries in scores_of(results).items():
        column = _column(score, entries, controls, earlier.get(score, {}))
        members.setdefault(metrics.get(score, ""), []).append(column)
    protocols = results.get("protocols") or {}
    groups = [
        Group(spoken(metric) or "scores", columns, str(protocols.get(metric, "")), _left_out(results, metric), place)
        for place, (metric, columns) in enumerate(members.items(), start=1)
    ]
    return [*groups, *_counts(results)]


def _metrics(results: Mapping[str, Any]) -> dict[str, str]:
    """The metric of each score."""
    return {
        score: str(fields["metric"])
        for entries in (results.get("methods") or {}).values()
        for score, fields in entries.items()
        if fields.get("metric")
    }


def _entry(fields: Mapping[str, Any]) -> Entry | None:
    value, low, high = (finite(fields.get(key)) for key in ("value", "low", "high"))
    if value is None:
        return None
    if low is None or high is None:
        low = high = value
    return Entry(value, low, high, fields.get("num_images"))


def _column(score: str, entries: Mapping[str, Entry], controls: set[str], earlier: Mapping[str, Entry]) -> Column:
    lower = lower_is_better(score)
    compared = [entry.value for method, entry in entries.items() if method not in controls]
    best = None if len(compared) < 2 else (min if lower else max)(compared)
    baseline = [entry.value for method, entry in entries.items() if method in controls]
    control = (min if lower else max)(baseline) if baseline else None
    lowest, highest = min(entry.low for entry in entries.values()), max(entry.high for entry in entries.values())

    def position(value: float) -> float:
        return 50.0 if highest == lowest else round(100 * (value - lowest) / (highest - lowest), 1)

    cells = {}
    for method, entry in entries.items():
        bar = {"low": position(entry.low), "high": position(entry.high), "value": position(entry.value)}
        if control is not None:
            bar["control"] = position(control)
        half = number(entry.half) if entry.half else ""
        marked = method not in controls and entry.value == best
        change = _change(entry, earlier.get(method))
        cells[method] = Cell(entry, number(entry.value), half, _title(entry), marked, bar, change)
    return Column(spoken(score), score, lower, cells)


def _title(entry: Entry) -> str:
    interval = f", interval {number(entry.low)} to {number(entry.high)}" if entry.half else ""
    images = f", {entry.num_images:,} images" if entry.num_images is not None else ""
    return f"{entry.value:.6g}{interval}{images}"


def _change(entry: Entry, earlier: Entry | None) -> str:
    if earlier is None:
        return ""
    difference = entry.value - earlier.value
    sign = "+" if difference > 0 else "−" if difference < 0 else "±"  # noqa: RUF001  # the minus sign
    return sign + number(abs(difference))


def _counts(results: Mapping[str, Any]) -> list[Group]:
    """Degenerate maps and cost: numbers of the methods, no scores."""
    groups = []
    degenerate = {
        method: entry
        for method, entries in (results.get("methods") or {}).items()
        if (entry := _entry(entries.get("degenerate") or {})) is not None
    }
    if degenerate:
        cells = {method: _count(entry) for method, entry in degenerate.items()}
        groups.append(Group("maps", [Column("degenerate", "degenerate", True, cells)]))
    columns = []
    for key, name in COST.items():
        entries = {
            method: entry
            for method, fields in (results.get("cost") or {}).items()
            if (entry := _entry({"value": fields.get(key)})) is not None
        }
        if entries:
            columns.append(Column(name, key, True, {method: _count(entry) for method, entry in entries.items()}))
    if columns:
        groups.append(Group("cost", columns))
    return groups


def _count(entry: Entry) -> Cell:
    text = number(entry.value, 0 if float(entry.value).is_integer() else 2)
    return Cell(entry, text, "", _title(entry), False, {}, "")


def _left_out(results: Mapping[str, Any], metric: str) -> list[str]:
    """How many images are in no mean of a metric, in words; said once where all methods agree."""
    counts = {method: metrics.get(metric, {}) for method, metrics in (results.get("left_out") or {}).items()}
    lines = []
    for reason, words in REASONS.items():
        by_method = {method: int(fields.get(reason) or 0) for method, fields in counts.items()}
        numbers = set(by_method.values())
        if numbers <= {0}:
            continue
        if len(numbers) == 1 and len(by_method) > 1:
            lines.append(f"{words}: {numbers.pop():,} (every method)")
        else:
            lines.append(f"{words}: " + ", ".join(f"{count:,} ({name})" for name, count in by_method.items() if count))
    return lines
