"use strict";
// What the whole page does: theme, choice of a checkpoint, sorting of tables, reading of curves.

document.documentElement.classList.add("script");

function listenToTheme() {
  const button = byId("theme"), root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("litcam-theme");
    } catch {
      return null; // pages from files may have no storage
    }
  };
  const apply = (theme) => {
    if (theme === "dark" || theme === "light") root.dataset.theme = theme;
    button.setAttribute("aria-pressed", String((root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark"));
  };
  apply(stored());
  dark.addEventListener("change", () => apply(null));
  button.addEventListener("click", () => {
    const theme = button.getAttribute("aria-pressed") === "true" ? "light" : "dark";
    apply(theme);
    try {
      localStorage.setItem("litcam-theme", theme);
    } catch {
      // the choice lasts as long as the page
    }
  });
}

function chooseRun(gallery) {
  const select = byId("run");
  if (!select) return;
  const apply = () => {
    for (const panel of document.querySelectorAll("[data-run]")) panel.hidden = panel.dataset.run !== select.value;
    if (gallery) gallery.setRun(Number(select.value));
  };
  select.addEventListener("change", apply);
  for (const panel of document.querySelectorAll("[data-run]")) panel.hidden = panel.dataset.run !== select.value;
  if (select.value !== "0") apply(); // as a reloaded page remembers it
}

/** Sort the rows of each part of a table by a column; controls stay by themselves, the unmeasured last. */
function sortTable(button) {
  const heading = button.closest("th"), table = button.closest("table");
  const place = [...heading.parentElement.children].indexOf(heading);
  const before = heading.getAttribute("aria-sort");
  const ascending = before === "none" ? button.dataset.ascending === "true" : before === "descending";
  for (const other of heading.parentElement.children) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const compare = (a, b) => {
    const [one, other] = [a, b].map((row) => row.children[place].dataset.value);
    if (one === undefined || other === undefined) return (one === undefined) - (other === undefined);
    const order = place === 0 ? one.localeCompare(other) : Number(one) - Number(other);
    return ascending ? order : -order;
  };
  for (const body of table.tBodies) body.append(...[...body.querySelectorAll("tr[data-method]")].sort(compare));
}

/** A line through all panels of a figure at the point under the pointer, with the values of the curves there. */
function readCurves(panels) {
  const points = JSON.parse(panels.dataset.points);
  const charts = [...panels.querySelectorAll("svg")];
  if (!points.length) return;
  const space = "http://www.w3.org/2000/svg";
  const guides = charts.map((chart) => {
    const line = document.createElementNS(space, "line"), text = document.createElementNS(space, "text");
    line.setAttribute("class", "guide");
    text.setAttribute("class", "guide-text");
    chart.append(line, text);
    return { line, text };
  });
  const clear = () => guides.forEach(({ line, text }) => [line, text].forEach((part) => (part.style.display = "none")));
  clear();
  panels.addEventListener("pointerleave", clear);
  panels.addEventListener("pointermove", (event) => {
    const chart = event.target.closest("svg");
    if (!chart) return clear();
    const [low, high] = JSON.parse(chart.dataset.range), box = chart.getBoundingClientRect();
    const left = Number(chart.dataset.left), right = Number(chart.dataset.right), view = chart.viewBox.baseVal;
    const wanted = low + ((((event.clientX - box.left) / box.width) * view.width - left) / (right - left)) * (high - low);
    const nearest = points.reduce((best, point, place) => (Math.abs(point - wanted) < Math.abs(points[best] - wanted) ? place : best), 0);
    const x = left + ((points[nearest] - low) / (high - low || 1)) * (right - left);
    charts.forEach((other, place) => {
      const { line, text } = guides[place];
      const values = [...other.querySelectorAll("[data-values]")].map((curve) => `${curve.dataset.name} ${litcamNumber(JSON.parse(curve.dataset.values)[nearest])}`);
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
      line.setAttribute("y1", 18);
      line.setAttribute("y2", view.height - 34);
      text.setAttribute("x", right);
      text.setAttribute("y", 10);
      text.setAttribute("text-anchor", "end");
      text.textContent = `${Number(points[nearest].toFixed(1))} %: ${values.join(", ")}`;
      line.style.display = text.style.display = "";
    });
  });
}

listenToTheme();
for (const button of document.querySelectorAll("button.sort")) button.addEventListener("click", () => sortTable(button));
for (const panels of document.querySelectorAll(".panels")) readCurves(panels);

const litcam = { maps: litcamMaps, gallery: null };
if (byId("litcam-data")) {
  litcam.gallery = new Gallery(JSON.parse(byId("litcam-data").textContent));
  viewer = new Viewer(litcam.gallery);
  for (const link of document.querySelectorAll('a[href="#gallery"]')) {
    link.addEventListener("click", () => {
      if (link.closest(".failures")) litcam.gallery.only({ ...link.dataset });
    });
  }
}
window.litcam = litcam;
chooseRun(litcam.gallery);
