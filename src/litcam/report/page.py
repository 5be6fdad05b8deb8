"""The page: views of runs and drift, put into the template."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from litcam.errors import unwritable
from litcam.files import write_whole
from litcam.report.charts import curve_figures, drift_panels
from litcam.report.contents import Drift, ReportRun, check_contents
from litcam.report.gallery import colormap_table, gallery_json
from litcam.report.numbers import MISSING, finite, number, per_cent
from litcam.report.summary import summarize
from litcam.report.tables import groups_of, rows_of

TITLE = "What the model looks at"
SCRIPTS = ("maps.js", "gallery.js", "page.js")


def build_report(runs: Sequence[ReportRun], drift: Drift | None = None, title: str = TITLE) -> str:
    """The report as HTML, with everything it needs inside.

    Args:
        runs: one checkpoint or several; their galleries hold the same images.
        drift: how maps change from checkpoint to checkpoint.
        title: of the page.

    Raises:
        InputError: without runs, for results of another schema version, galleries of different images, or maps and
            drift of another form.
    """
    check_contents(runs, drift)
    controls = list(dict.fromkeys(control for run in runs for control in run.results.get("controls") or ()))
    environment = Environment(
        loader=PackageLoader("litcam", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "per_cent": per_cent, "finite": finite}
    first = runs[0].results
    views: list[dict[str, Any]] = [
        {
            "name": run.name,
            "results": run.results,
            "rows": rows_of(run.results),
            "groups": groups_of(run.results, None if place == 0 else first),
            "figures": curve_figures(run.results),
            "summary": summarize(run),
        }
        for place, run in enumerate(runs)
    ]
    leaders = [view["summary"].standings[0].method if view["summary"].standings else None for view in views]
    return environment.get_template("report.html.j2").render(
        title=title,
        runs=views,
        drift=drift,
        drift_panels=drift_panels(drift, controls) if drift else [],
        num_images=len(runs[0].images),
        leaders=leaders,
        missing=MISSING,
        style=_asset("report.css"),
        script=Markup("\n").join(_asset(name) for name in SCRIPTS),
        data=Markup(gallery_json(runs)),  # no "<" is left in it
        ramp=_ramp(),
    )


def write_report(path: str | Path, runs: Sequence[ReportRun], drift: Drift | None = None) -> None:
    """Write the report to a file.

    Raises:
        InputError: for contents that :func:`build_report` refuses, and for a path that cannot be written.
    """
    html = build_report(runs, drift)
    try:
        write_whole(Path(path), html.encode("utf-8", "replace"))  # names of files need not be valid Unicode
    except OSError as error:
        raise unwritable(path, error) from error


def _asset(name: str) -> Markup:
    """A file of this package, as it is."""
    return Markup(files("litcam.report").joinpath(name).read_text(encoding="utf-8"))


def _ramp() -> Markup:
    """The colours of maps as the stops of a CSS gradient."""
    stops = (f"rgb({red} {green} {blue})" for red, green, blue in colormap_table()[::17].tolist())
    return Markup(", ".join(stops))
