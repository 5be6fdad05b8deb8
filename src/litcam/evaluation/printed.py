"""The results of an evaluation as tables to print: methods are rows, scores stand in groups that fit the width."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from litcam.evaluation.scored import LEFT_OUT
from litcam.progress import print_line

Column = tuple[str, list[str]]  # heading, and a cell for each method
_BETWEEN = 3  # characters from one column to the next, at most
_LONG_NAME = 20  # characters of a method's name that stay on one line


def print_results(
    results: Mapping[str, Any],
    cost: Mapping[str, Mapping[str, float]] | None = None,
    console: Console | None = None,
) -> None:
    """Print the scores of every method, as wide as the console; a number is never cut.

    Each metric has its tables; where its scores do not fit beside each other they go on below. Where there is no
    terminal the tables are plain: no frames, no colours, the same numbers.

    Args:
        results: What ``results.json`` holds.
        cost: What ``cost.json`` holds; None prints no times.
        console: Where to print; None prints to stdout.
    """
    console = console or Console()
    names = [_broken(name) for name in results["methods"]]
    title = f"{results['split']}: {results['num_images']:,} images, accuracy {results['accuracy']:.3f}"
    unknown: Mapping[str, int] = results.get("unknown_classes", {}).get("classes", {})
    if unknown:
        title += f"; left out as unknown classes: {', '.join(f'{name} {count:,}' for name, count in unknown.items())}"
    print_line(console, title, style="bold")
    for heading, columns in _groups(results, cost):
        for number, fitting in enumerate(_fitting(columns, console.width - _names_width(names))):
            title = heading + (", continued" if number else "")
            table = _table(title, names, fitting, plain=not console.is_terminal)
            needed = _names_width(names) + sum(map(_width, fitting))
            if needed > console.width:
                table.width = needed  # runs over the edge: rich would cut the numbers
            console.print()
            console.print(table, crop=False)
    print_line(console, "\nmean ± half the 95 % interval; ↓: lower is better", style="italic")


def _broken(method: str) -> str:
    """A method's name on one line, or, where that is long, with its options below."""
    return method if len(method) <= _LONG_NAME else method.replace(":", ":\n  ")


def _groups(
    results: Mapping[str, Any], cost: Mapping[str, Mapping[str, float]] | None
) -> list[tuple[str, list[Column]]]:
    """The scores of each metric, then what was left out and what it took."""
    methods: Mapping[str, Mapping[str, Any]] = results["methods"]
    metric_of = {name: entry.get("metric", "") for scores in methods.values() for name, entry in scores.items()}
    groups: dict[str, list[Column]] = {}
    for score, metric in metric_of.items():
        if score != "degenerate":
            groups.setdefault(metric, []).append(_score_column(results, score))
    return [*groups.items(), ("left out, and cost" if cost else "left out", _counts(results, cost))]


def _score_column(results: Mapping[str, Any], score: str) -> Column:
    heading = score.replace("_", " ") + (" ↓" if score in results["lower_is_better"] else "")
    return heading, [_cell(scores.get(score)) for scores in results["methods"].values()]


def _counts(results: Mapping[str, Any], cost: Mapping[str, Mapping[str, float]] | None) -> list[Column]:
    """Images left out of some score, by reason, and the time of each method."""
    methods: Mapping[str, Mapping[str, Any]] = results["methods"]
    columns: list[Column] = [("degenerate", [str(scores["degenerate"]["value"]) for scores in methods.values()])]
    for reason in LEFT_OUT[1:]:
        counts = [
            max((counts[reason] for counts in results["left_out"].get(name, {}).values()), default=0)
            for name in methods
        ]
        if any(counts):
            columns.append((reason.replace("_", " "), list(map(str, counts))))
    if cost is not None:
        columns.append(("ms per image", [f"{cost[name]['ms_per_image']:.1f}" for name in methods]))
    return columns


def _fitting(columns: list[Column], width: int) -> list[list[Column]]:
    """Columns side by side as far as they fit, at least one."""
    rows: list[list[Column]] = [[]]
    left = width
    for column in columns:
        if rows[-1] and _width(column) > left:
            rows.append([])
            left = width
        rows[-1].append(column)
        left -= _width(column)
    return rows


def _width(column: Column) -> int:
    """A heading may be broken between words, a number never."""
    heading, cells = column
    return max(map(len, [*heading.replace(" ↓", "_↓").split(), *cells])) + _BETWEEN


def _names_width(names: list[str]) -> int:
    return max(len(line) for name in names for line in name.split("\n")) + _BETWEEN + 1


def _table(title: str, names: list[str], columns: list[Column], plain: bool) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None if plain else box.HEAVY_HEAD, pad_edge=not plain)
    table.add_column("", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading.replace(" ↓", "\u00a0↓"), justify="right", vertical="bottom")
    for number, name in enumerate(names):
        table.add_row(Text(name), *(cells[number] for _, cells in columns))
    return table


def _cell(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return "-"
    if "low" not in entry:
        return str(entry["value"])
    return f"{entry['value']:.3f} ± {(entry['high'] - entry['low']) / 2:.3f}"
