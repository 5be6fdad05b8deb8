"""The report as a file: complete, self-contained, harmless whatever the names, and small."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_cases import HOSTILE, METHODS, make_drift, make_images, make_results, make_run, make_thumbnail

from litcam.errors import InputError
from litcam.report import Drift, ReportRun, build_report, write_report
from litcam.report.charts import Frame, curve_figures, ticks
from litcam.report.gallery import THUMBNAIL_SIDE
from litcam.report.numbers import lower_is_better, number, spoken
from litcam.report.summary import summarize
from litcam.report.tables import groups_of

VOID = {"meta", "link", "input", "br", "wbr", "img", "hr"}


class Page(HTMLParser):
    """The elements of a page, their texts, and whether they are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[int] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for place in self.open:
            self.texts[place] += data

    def find(self, tag: str, **wanted: str) -> Iterator[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements with this tag and these attributes."""
        for (name, attributes), text in zip(self.elements, self.texts, strict=True):
            if name == tag and all(attributes.get(key) == value for key, value in wanted.items()):
                yield attributes, text

    def data(self) -> Any:
        """What the page's script draws."""
        return json.loads(next(self.find("script", id="litcam-data"))[1])


@pytest.fixture(scope="module")
def html() -> str:
    return build_report([make_run(), make_run("second.ckpt", seed=1)], make_drift(), title="A <b>title</b>")


def rows_of_table(page: Page) -> Iterator[tuple[str, dict[str, tuple[str | None, str]]]]:
    """Method → score → value and text of every cell, from the first table of scores."""
    method, cells = None, {}
    for (tag, attributes), text in zip(page.elements, page.texts, strict=True):
        if tag == "tr" and method is not None:
            yield method, cells
            method = None
        if tag == "tr" and "data-method" in attributes:
            method, cells = attributes["data-method"], {}
        if tag == "td" and attributes.get("data-score") and method is not None:
            cells[attributes["data-score"]] = (attributes.get("data-value"), " ".join(text.split()))
    if method is not None:
        yield method, cells


def test_names_of_any_characters_stay_text(html: str) -> None:
    page = Page(html)
    assert HOSTILE in [image["id"] for image in page.data()["images"]]
    assert not [attributes for _, attributes in page.elements if any(name.startswith("on") for name in attributes)]
    assert not list(page.find("img"))
    assert len(list(page.find("script"))) == 2
    assert [text for _, text in page.find("h1")] == ["A <b>title</b>"]
    assert any('an <i>odd</i> "class" & more taken for' in text for _, text in page.find("a"))


def test_hostile_names_in_results_are_escaped() -> None:
    results = make_results(methods=("<img src=x>", "random"))
    results["split"] = results["protocols"]["localization"] = "<script>alert(1)</script>"
    page = Page(build_report([ReportRun("</title><script>", results)]))
    assert not list(page.find("img"))
    assert len(list(page.find("script"))) == 1


def test_a_file_name_that_is_no_unicode_can_be_written(tmp_path: Path) -> None:
    run = make_run("bad\udcff.ckpt", count=1)
    write_report(tmp_path / "report.html", [replace(run, images=[replace(run.images[0], id="bad\udcff.png")])])
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    page = Page(html)
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert set(re.findall(r"https?://[^\"'\s]*", html)) <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in html
    assert "url(" not in html
    policy = next(page.find("meta", **{"http-equiv": "Content-Security-Policy"}))[0]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_table_holds_the_numbers_of_the_results() -> None:
    results = make_results()
    table = dict(rows_of_table(Page(build_report([ReportRun("a.ckpt", results)]))))
    assert set(table) == set(METHODS)
    for method, entries in results["methods"].items():
        for score, entry in entries.items():
            value, text = table[method][score]
            assert value is not None
            assert float(value) == entry["value"]
            if score != "degenerate":
                assert f"{entry['value']:.3f} ± {(entry['high'] - entry['low']) / 2:.3f}" in text
    assert float(table["agcam"]["ms_per_image"][0] or 0) == results["cost"]["agcam"]["ms_per_image"]
    assert table["random"]["ms_per_image"] == (None, "–not measured")  # noqa: RUF001


def test_the_best_method_is_marked_and_a_control_never() -> None:
    results = make_results()
    for place, method in enumerate(METHODS):
        for score in ("iou", "morf"):
            results["methods"][method][score] |= {"value": 0.1 + 0.2 * place, "low": 0.0, "high": 1.0}
    columns = {column.key: column for group in groups_of(results) for column in group.columns}
    best = {key: [method for method, cell in columns[key].cells.items() if cell.best] for key in ("iou", "morf")}
    assert best == {"iou": ["reciprocam:kernel=dirac"], "morf": ["agcam"]}  # the control has the highest IoU
    assert columns["morf"].lower
    assert not columns["iou"].lower


def test_counts_left_out_are_said_once_for_all_methods() -> None:
    results = make_results()
    results["left_out"]["agcam"]["localization"]["degenerate"] = 4
    localization = groups_of(results)[0]
    assert localization.left_out == ["degenerate maps: 4 (agcam)", "without a true region: 12 (every method)"]
    assert localization.note == results["protocols"]["localization"]


def test_later_checkpoints_say_how_scores_changed() -> None:
    first, second = make_results(), make_results()
    second["methods"]["agcam"]["iou"]["value"] = first["methods"]["agcam"]["iou"]["value"] + 0.25
    changes = {column.key: column.cells["agcam"].change for column in groups_of(second, first)[0].columns}
    assert changes["iou"] == "+0.250"
    assert changes["pointing_game"] == "±0.000"


def test_missing_entries_leave_a_page_that_says_so() -> None:
    results = make_results()
    for key in ("curves", "cost", "left_out", "target", "protocols", "accuracy"):
        del results[key]
    for key in ("low", "high", "metric"):
        del results["methods"]["agcam"]["iou"][key]
    del results["methods"]["rollout"]["iou"]
    results["methods"]["rollout"]["lerf"]["value"] = float("nan")
    page = Page(build_report([ReportRun("a.ckpt", results)]))
    table = dict(rows_of_table(page))
    assert table["rollout"]["iou"][0] is None
    assert table["rollout"]["lerf"][0] is None
    assert "±" not in table["agcam"]["iou"][1]
    assert not list(page.find("section", id="curves"))
    assert not list(page.find("section", id="gallery"))
    assert not list(page.find("section", id="drift"))


@pytest.mark.parametrize("methods", [(), ("random",), ("agcam",), tuple(f"method_{i}" for i in range(10))])
def test_any_number_of_methods_can_be_shown(methods: tuple[str, ...]) -> None:
    page = Page(build_report([ReportRun("a.ckpt", make_results(methods=methods))]))
    assert len(list(rows_of_table(page))) == len(methods)


def test_images_without_boxes_scores_or_maps_can_be_shown() -> None:
    image = replace(make_images(1)[0], boxes=[], scores={}, maps={}, kinds=())
    seen = Page(build_report([ReportRun("a.ckpt", make_results(), [image])])).data()["runs"][0]["images"][0]
    assert seen["boxes"] == seen["maps"] == []


def test_the_gallery_holds_each_picture_once_and_every_map_bit_for_bit(html: str) -> None:
    data, images = Page(html).data(), make_images()
    assert len(data["thumbnails"]) == len(images)
    assert base64.b64decode(data["thumbnails"][5]) == images[5].thumbnail
    rows, columns, text = data["runs"][0]["images"][5]["maps"][2]
    grid = np.frombuffer(base64.b64decode(text), np.uint8).reshape(rows, columns)
    np.testing.assert_array_equal(grid, images[5].maps[METHODS[2]])
    assert data["runs"][0]["images"][3]["scores"][0][0] is None
    assert len(data["runs"]) == 2


def test_two_thousand_images_stay_below_50_megabytes() -> None:
    images = [replace(image, id=f"{place}.JPEG") for place, image in enumerate(make_images(40, kept=40) * 50)]
    assert images[0].thumbnail == make_thumbnail(0)
    html = build_report([ReportRun("a.ckpt", make_results(), images)])
    assert len(html.encode()) < 50e6
    thumbnail = base64.b64decode(Page(html).data()["thumbnails"][-1])
    height = int.from_bytes(re.search(rb"\xff[\xc0\xc2]..\x08(..)", thumbnail, re.DOTALL).group(1), "big")  # type: ignore[union-attr]
    assert height == THUMBNAIL_SIDE


def test_the_summary_answers_from_scores_controls_and_images() -> None:
    results = make_results()
    for method, value in zip(METHODS, (0.9, 0.8, 0.7, 0.3), strict=True):
        for score in ("iou", "pointing_game", "energy_inside", "lerf", "abpc"):
            results["methods"][method][score] |= {"value": value, "low": value - 0.01, "high": value + 0.01}
        results["methods"][method]["morf"] |= {"value": 0.5, "low": 0.4, "high": 0.6}
    summary = summarize(ReportRun("a.ckpt", results, make_images()))
    assert summary.looking is not None
    assert summary.looking.figure == "90.0 %"
    assert summary.looking.good
    assert [bar.method for bar in summary.looking.bars] == list(METHODS)
    assert [(row.method, row.clear, row.compared) for row in summary.standings] == [(m, 5, 6) for m in METHODS[:3]]
    assert summary.failures is not None
    assert summary.failures.wrong == sum(not image.correct for image in make_images())
    assert sum(count for _, count in summary.failures.kinds) == 8


def test_a_method_within_the_control_s_interval_is_not_called_clear() -> None:
    results = make_results(methods=("agcam", "random"))
    for method, value in (("agcam", 0.5), ("random", 0.48)):
        results["methods"][method]["pointing_game"] |= {"value": value, "low": value - 0.02, "high": value + 0.02}
    looking = summarize(ReportRun("a.ckpt", results)).looking
    assert looking is not None
    assert not looking.good
    assert looking.verdict == "not clear of the control random, which has 0.480"


def test_curves_lie_where_their_values_are() -> None:
    figure = curve_figures(make_results())[0]
    assert [panel.row.method for panel in figure.panels] == list(METHODS)
    assert figure.frame.y_ticks == [0, 0.2, 0.4, 0.6, 0.8, 1.0] or figure.frame.y_range[1] > 1
    value = make_results()["curves"]["agcam"]["perturbation"]["curves"]["lerf"]["value"]
    first = figure.panels[0].lines[0].path.removeprefix("M").split("L")[0]
    assert first == f"{figure.frame.x(0)},{figure.frame.y(value[0])}"
    frame = Frame((0, 100), (0, 1))
    assert (frame.x(0), frame.x(100)) == (34, 260)
    assert (frame.y(1), frame.y(0)) == (18, 156)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 100, [0, 20, 40, 60, 80, 100]), (2, 2, [2]), (-0.5, 1, [-0.5, 0, 0.5, 1])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_scores_are_named_and_numbered_as_people_read_them() -> None:
    assert [spoken("mask_iou"), spoken("energy_inside"), spoken("abpc")] == ["mask IoU", "energy inside", "ABPC"]
    assert [number(None), number(0.51249), number(12.34), number(2000.0)] == ["–", "0.512", "12.3", "2,000"]  # noqa: RUF001
    lower = ("morf", "deletion", "positive", "drop", "complexity", "degenerate")
    assert all(map(lower_is_better, lower))
    assert not any(map(lower_is_better, ("lerf", "abpc", "iou", "negative", "coherency")))


def test_contents_that_do_not_fit_are_refused() -> None:
    run = make_run(count=2)
    with pytest.raises(InputError, match="one checkpoint at least"):
        build_report([])
    with pytest.raises(InputError, match="schema 1; 2 is needed"):
        build_report([replace(run, results={"schema_version": 1})])
    with pytest.raises(InputError, match=r"images of 'b' are not those of 'best.ckpt'"):
        build_report([run, replace(run, name="b", images=run.images[:1])])
    wrong = replace(run.images[0], maps={"agcam": np.zeros((14, 14))})
    with pytest.raises(InputError, match=r"float64 \[14, 14\]; uint8"):
        build_report([replace(run, images=[wrong])])
    with pytest.raises(InputError, match="has 1 values; between 3 checkpoints there are 2"):
        build_report([run], Drift(["a", "b", "c"], {"agcam": [0.5]}, {}))
    with pytest.raises(InputError, match="cannot be written"):
        write_report(Path(__file__) / "report.html", [run])
