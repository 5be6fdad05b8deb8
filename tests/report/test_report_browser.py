"""The report in a browser: what one sees is what the scores see, and every control does what it says."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_cases import HOSTILE, METHODS, make_drift, make_images, make_map, make_results, make_run

from litcam.heatmaps import component_boxes, upsample
from litcam.metrics.functional import localization
from litcam.report import ReportRun, write_report

SCREEN = {"viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("chromium is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of one checkpoint."""
    path = tmp_path_factory.mktemp("report") / "one.html"
    write_report(path, [make_run()])
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two checkpoints, with drift."""
    path = tmp_path_factory.mktemp("report") / "two.html"
    write_report(path, [make_run("first, of a long name " + 3 * "x" + ".ckpt"), make_run("b.ckpt", 1)], make_drift())
    return path


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Open a file in a new page; a page that reports an error fails its test."""
    errors: list[str] = []
    contexts = []

    def open_page(path: Path, **options: Any) -> Any:
        context = browser.new_context(**{**SCREEN, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []


def drawn(page: Any, place: int, method: int) -> Any:
    """The canvas of a method (0: the picture itself) in the card at a place, once it is drawn."""
    canvas = page.locator(".card").nth(place).locator("canvas").nth(method)
    canvas.evaluate("canvas => canvas.scrollIntoView({ block: 'center' })")
    page.wait_for_function("canvas => canvas.dataset.drawn", arg=canvas.element_handle())
    return canvas


def set_slider(page: Any, name: str, value: float) -> None:
    page.locator(f"#{name}").evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input')); }", value)
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pixels(canvas: Any) -> Any:
    text = canvas.evaluate("c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].join()")
    return np.array(text.split(","), dtype=np.int64)


def positions(page: Any) -> list[int]:
    """Places in the gallery of the cards on the page."""
    return [int(x) for x in page.eval_on_selector_all(".card", "cards => cards.map(c => c.dataset.position)")]


def upsampled(grid: Any, size: tuple[int, int]) -> torch.Tensor:
    return upsample(torch.from_numpy(grid)[None], size)[0]


def test_a_map_is_enlarged_as_the_metrics_see_it(visit: Any, one: Path) -> None:
    page, rng = visit(one), np.random.default_rng(3)
    call = "([g, gh, gw, h, w]) => { const v = litcam.maps.upsample(g, gh, gw, h, w); return v && [...v]; }"
    sizes = [((14, 14), (224, 224)), ((16, 16), (224, 224)), ((7, 11), (90, 133)), ((3, 5), (3, 5)), ((9, 8), (5, 3))]
    for grid, size in sizes:
        values = make_map(rng, grid)
        shown = page.evaluate(call, [values.flatten().tolist(), *grid, *size])
        np.testing.assert_allclose(shown, upsampled(values, size).flatten(), rtol=0, atol=1e-6)
    assert page.evaluate(call, [[9, 9], 1, 2, 8, 8]) is None  # constant: nothing to see


@pytest.mark.parametrize("threshold", [0.5, 0.23])
def test_found_boxes_and_iou_are_those_of_the_metrics(visit: Any, one: Path, threshold: float) -> None:
    page, images = visit(one), make_images()
    set_slider(page, "threshold", threshold)
    for place in (0, 4):
        for method, name in enumerate(METHODS, start=1):
            canvas = drawn(page, place, method)
            heatmap = upsampled(images[place].maps[name], images[place].size)
            expected = component_boxes((heatmap > threshold).numpy()).tolist()
            assert sorted(json.loads(canvas.get_attribute("data-found"))) == sorted(expected)
            region = torch.zeros(images[place].size, dtype=torch.bool)
            ((x0, y0, x1, y1),) = images[place].boxes
            rows, columns = torch.arange(224) + 0.5, torch.arange(224) + 0.5
            region |= ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))[None]
            iou = localization(heatmap[None], region[None], threshold)["iou"].item()
            assert float(canvas.get_attribute("data-iou")) == pytest.approx(iou, abs=1e-9)
            shown = page.locator(".card").nth(place).locator(".tile").nth(method).inner_text()
            assert (f"IoU {iou:.2f} at {threshold:.2f}" in shown) == (threshold != 0.5)


def test_touching_corners_and_rings_are_one_component(visit: Any, one: Path) -> None:
    page, rng = visit(one), np.random.default_rng(0)
    for density in (0.2, 0.45, 0.6):
        mask = rng.random((23, 31)) < density
        call = "([v, h, w]) => litcam.maps.boxes(v, h, w, 0.5)"
        found = page.evaluate(call, [mask.flatten().astype(float).tolist(), 23, 31])
        assert sorted(found) == sorted(component_boxes(mask).tolist())


def test_sliders_and_toggles_act_on_the_pixels(visit: Any, one: Path) -> None:
    page = visit(one)
    canvas, picture = drawn(page, 0, 1), drawn(page, 0, 0)
    start, plain = pixels(canvas), pixels(picture)
    set_slider(page, "threshold", 0.8)
    assert (pixels(canvas) != start).any()
    page.locator("#found-boxes").uncheck()
    page.locator("#true-boxes").uncheck()
    set_slider(page, "opacity", 0)
    without = pixels(canvas)
    np.testing.assert_array_equal(without, pixels(picture))
    assert (plain != pixels(picture)).any()  # it had the true box
    set_slider(page, "opacity", 1)
    assert (pixels(canvas) != without).mean() > 0.3
    assert page.locator("output[for=opacity]").inner_text() == "1.00"
    page.locator("#reset").click()
    page.wait_for_function("canvas => canvas.dataset.drawn === '0.5 0.55'", arg=canvas.element_handle())
    np.testing.assert_array_equal(pixels(canvas), start)


def test_a_full_overlay_shows_the_colours_of_the_map(visit: Any, one: Path) -> None:
    page, images = visit(one, device_scale_factor=1), make_images()
    page.locator("#found-boxes").uncheck()
    page.locator("#true-boxes").uncheck()
    set_slider(page, "opacity", 1)
    canvas = drawn(page, 0, 1)
    side = canvas.evaluate("c => c.width")
    shown = pixels(canvas).reshape(side, side, 4)[..., :3].sum(-1)
    heatmap = upsampled(images[0].maps["agcam"], (side, side)).numpy()
    bright, dark = shown[heatmap > 0.9].mean(), shown[heatmap < 0.1].mean()
    assert bright > 500 > 150 > dark
    ranks = [values.flatten().argsort().argsort() for values in (shown, heatmap)]
    assert np.corrcoef(*ranks)[0, 1] > 0.99  # the colour map grows in lightness throughout


def test_a_degenerate_map_is_called_so(visit: Any, one: Path) -> None:
    page = visit(one)
    drawn(page, 2, 2)
    tile = page.locator(".card").nth(2).locator(".tile").nth(2)
    assert "degenerate" in tile.inner_text()
    assert "degenerate" in tile.locator("canvas").get_attribute("aria-label")


def test_a_heading_sorts_the_methods_by_click_and_by_key(visit: Any, one: Path) -> None:
    page, scores = visit(one), make_results()["methods"]

    def methods() -> list[str]:
        return page.eval_on_selector_all("tr[data-method]", "rows => rows.map(r => r.dataset.method)")

    ranked = sorted(METHODS[:3], key=lambda method: -scores[method]["iou"]["value"])
    heading = page.locator(".scores th:has(button:text-is('IoU'))")
    heading.locator("button").click()
    assert methods() == [*ranked, "random"]  # controls stay apart
    assert heading.get_attribute("aria-sort") == "descending"
    heading.locator("button").press("Enter")
    assert methods() == [*reversed(ranked), "random"]
    assert heading.get_attribute("aria-sort") == "ascending"
    page.locator(".scores button:text-is('MoRF')").press("Enter")  # lower is better: the lowest come first
    assert methods()[:3] == sorted(METHODS[:3], key=lambda method: scores[method]["morf"]["value"])
    assert heading.get_attribute("aria-sort") == "none"
    page.locator(".scores button:text-is('ms per image')").click()
    assert methods()[2] == "reciprocam:kernel=dirac"  # without a cost: last


def test_filters_and_order_choose_the_images(visit: Any, one: Path) -> None:
    page, images = visit(one), make_images()
    everything = range(len(images))
    assert positions(page) == list(everything)[:24]
    page.locator("#next").click()
    assert positions(page) == list(everything)[24:]
    page.locator("#filter-outcome").select_option("wrong")
    assert positions(page) == [i for i in everything if not images[i].correct][:24]
    page.locator("#filter-label").select_option(label='an <i>odd</i> "class" & more (7)')
    chosen = [i for i in everything if not images[i].correct and i % 4 == 2]
    assert positions(page) == chosen
    assert page.locator("#status").inner_text() == f"{len(chosen)} of 30 images"
    page.locator("#reset").click()
    page.locator("#filter-kind").select_option("methods disagree")
    assert positions(page) == [i for i in everything if "methods disagree" in images[i].kinds]
    page.locator("#reset").click()
    page.locator("#sort-by").select_option("probability")
    assert positions(page) == sorted(everything, key=lambda i: -images[i].probability)[:24]
    page.locator("#sort-by").select_option(label="IoU")
    page.locator("#sort-order").select_option("ascending")
    known = [i for i in everything if images[i].scores["agcam"]["iou"] is not None]
    assert positions(page) == sorted(known, key=lambda i: images[i].scores["agcam"]["iou"] or 0)[:24]
    page.locator("#next").click()
    assert positions(page)[-1] == 3  # has no such score
    page.locator("#methods input").first.uncheck()
    assert page.locator(".card").first.locator("canvas").count() == len(METHODS)


def test_a_line_of_the_summary_opens_its_images(visit: Any, one: Path) -> None:
    page, images = visit(one), make_images()
    page.locator(".failures a", has_text="wrong but on the object").click()
    assert positions(page) == [i for i, image in enumerate(images) if "wrong but on the object" in image.kinds]
    page.locator(".failures a", has_text="taken for").first.click()
    assert 0 < len(positions(page)) < 24
    assert page.locator("#filter-outcome").input_value() == "wrong"


def test_hostile_names_run_nothing(visit: Any, one: Path) -> None:
    page = visit(one)
    assert page.evaluate("window.hacked") is None
    assert page.locator(".card h3").nth(1).evaluate("heading => heading.textContent") == HOSTILE


def test_the_viewer_steps_through_the_maps_by_key(visit: Any, one: Path) -> None:
    page = visit(one)
    drawn(page, 0, 1)
    page.locator(".card .tile").nth(1).press("Enter")
    assert page.locator("#viewer-title").inner_text() == "agcam · val/0000.JPEG"
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-title").inner_text().startswith("rollout")
    page.wait_for_function("() => document.querySelector('#viewer-tile canvas').dataset.drawn")
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_system_until_it_is_toggled(visit: Any, one: Path, scheme: str) -> None:
    page = visit(one, color_scheme=scheme)

    def lightness() -> int:
        return page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")

    assert (lightness() > 128) == (scheme == "light")
    page.locator("#theme").press("Enter")
    assert (lightness() > 128) == (scheme == "dark")
    assert page.locator("#theme").get_attribute("aria-pressed") == str(scheme == "light").lower()
    page.reload()
    assert (lightness() > 128) == (scheme == "dark")


def test_the_chosen_checkpoint_shows_its_own_numbers_and_filters(visit: Any, two: Path) -> None:
    page, images = visit(two), make_images(seed=1)
    assert page.locator("#scores .run:visible").count() == 1
    assert page.locator(".card").first.locator(".card-row").count() == 2
    page.locator("#run").select_option("1")
    cell = page.locator("#scores .run:visible tr[data-method=agcam] td[data-score=iou]")
    assert float(cell.get_attribute("data-value")) == make_results(1)["methods"]["agcam"]["iou"]["value"]
    page.locator("#filter-outcome").select_option("right")
    assert positions(page) == [i for i, image in enumerate(images) if image.correct][:24]


def test_a_phone_scrolls_in_one_direction(visit: Any, two: Path) -> None:
    page = visit(two, viewport=PHONE, has_touch=True)
    drawn(page, 1, 0)  # with the longest name
    assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]
    page.locator(".card .tile").nth(1).click()
    assert page.locator("#viewer").bounding_box()["width"] <= PHONE["width"]


def test_names_without_a_space_do_not_widen_a_phone(visit: Any, tmp_path: Path) -> None:
    name = 140 * "x"
    images = [replace(image, id=name, label=name, predicted=name, kinds=(name,)) for image in make_images(1)]
    results = {**make_results(methods=(f"method:{name}", "random")), "protocols": {"perturbation": name}}
    write_report(tmp_path / "long.html", [ReportRun(name, results, images)], make_drift())
    page = visit(tmp_path / "long.html", viewport=PHONE)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"]


CONTRAST = """() => {
  const known = new Map();
  const shade = (text) => known.get(text) || known.set(text, read(text)).get(text);
  const read = (text) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const context = canvas.getContext("2d");
    context.fillStyle = text;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = shade(getComputedStyle(node).backgroundColor);
      if (colour[3] > 200) return colour;
    }
    return [255, 255, 255, 255];
  };
  const weak = [];
  for (const node of document.querySelectorAll("body *")) {
    const texts = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!texts || !node.getClientRects().length || node.closest(":disabled, script, .sr, .swatch")) continue;
    const style = getComputedStyle(node);
    const colour = shade(node.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(colour), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) weak.push(`${node.tagName}.${node.className} ${ratio.toFixed(2)}`);
  }
  return weak;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_and_controls_names(visit: Any, two: Path, scheme: str) -> None:
    page = visit(two, color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []
    named = "e => e.ariaLabel || e.textContent.trim() || (e.labels || '').length || e.querySelector('[aria-label]')"
    unnamed = f"all => all.filter(e => !({named})(e)).map(e => e.outerHTML)"
    assert page.eval_on_selector_all("button, select, input, canvas, a", unnamed) == []
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_tables_and_curves_need_no_script(visit: Any, two: Path) -> None:
    page = visit(two, java_script_enabled=False)
    assert page.locator(".scores:visible").count() == 2
    assert page.locator(".panel svg:visible").count() == 2 * len(METHODS)
    assert page.locator("#filters:visible").count() == 0
    assert page.locator("noscript").first.is_visible()


def test_a_report_without_images_or_boxes_opens(visit: Any, tmp_path: Path) -> None:
    bare = [replace(image, boxes=[], scores={}) for image in make_images(2)]
    for name, images in (("none", []), ("bare", bare)):
        write_report(tmp_path / f"{name}.html", [ReportRun(name, make_results(), images)])
        page = visit(tmp_path / f"{name}.html")
        assert page.locator(".card").count() == len(images)
    drawn(page, 0, 1)


def test_curves_are_read_under_the_pointer(visit: Any, one: Path) -> None:
    page = visit(one)
    chart = page.locator(".panel svg").first
    chart.evaluate("chart => chart.scrollIntoView({ block: 'center' })")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] * (34 + 0.5 * 226) / 270, box["y"] + box["height"] / 2)
    curves = make_results()["curves"]["agcam"]["perturbation"]["curves"]
    expected = f"50 %: LeRF {curves['lerf']['value'][5]:.3f}, MoRF {curves['morf']['value'][5]:.3f}"
    assert chart.locator(".guide-text").text_content() == expected
