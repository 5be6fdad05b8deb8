"use strict";
// The gallery: cards of images, drawn when they come into view. Knows the data and litcamMaps.

const PAGE_SIZE = 24;
const DEFAULTS = { threshold: 0.5, opacity: 0.55 };
const CAPTION_SCORES = [["IoU", ["iou", "mask_iou"]], ["pointing", ["pointing_game", "pointing", "mask_pointing_game"]], ["energy", ["energy_inside", "mask_energy_inside"]]];

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const litcamNumber = (value) => (value === null || value === undefined ? "–" : Math.abs(value) < 10 ? value.toFixed(3) : value.toFixed(1));
const byId = (id) => document.getElementById(id);

class Gallery {
  constructor(data) {
    this.data = data;
    this.table = litcamMaps.decode(data.colormap);
    this.state = { run: 0, page: 0, trueBoxes: true, foundBoxes: true, ...DEFAULTS };
    this.hidden = new Set();
    this.pictures = new Map(); // position → Image, decoding or decoded
    this.regions = new WeakMap(); // what a checkpoint sees → its true region
    this.tiles = new Map(); // canvas → tile
    this.visible = new Set();
    this.observer = new IntersectionObserver((entries) => this.see(entries), { rootMargin: "150px" });
    const keys = data.scores.map((score) => score.key);
    this.captions = CAPTION_SCORES.map(([name, known]) => [name, keys.findIndex((key) => known.includes(key))]).filter(([, place]) => place >= 0);
    if (!this.captions.length) this.captions = data.scores.slice(0, 2).map((score, place) => [score.name, place]);
    this.fill();
    this.listen();
    this.update();
    this.strip();
  }

  seen(position, run) {
    return this.data.runs[run].images[position];
  }

  // --- controls ---------------------------------------------------------------------------------

  /** Fill the selects with what the data holds. */
  fill() {
    const { images, methods, runs, scores } = this.data;
    const count = (values) => values.reduce((counts, value) => counts.set(value, (counts.get(value) || 0) + 1), new Map());
    const option = (value, text) => element("option", { value }, text);
    const order = new Intl.Collator(undefined, { numeric: true }).compare;
    const labels = [...count(images.map((image) => image.label))].sort((a, b) => order(a[0], b[0]));
    byId("filter-label").append(option("", "all"), ...labels.map(([label, number], place) => option(String(place), `${label} (${number})`)));
    this.labels = labels.map(([label]) => label);
    const kinds = [...new Set(runs.flatMap((run) => run.images.flatMap((image) => image.kinds)))];
    byId("filter-kind").append(option("", "any or none"), ...kinds.map((kind) => option(kind, kind)));
    byId("sort-by").append(option("", "dataset order"), option("probability", "probability"), ...scores.map((score, place) => option(String(place), score.name + (score.lower ? " (lower is better)" : ""))));
    byId("sort-method").append(...methods.map((method, place) => option(String(place), method)));
    methods.forEach((method, place) => {
      const box = element("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        if (box.checked) this.hidden.delete(place);
        else this.hidden.add(place);
        this.render();
      });
      byId("methods").append(element("label", { class: "check" }, box, method));
    });
  }

  listen() {
    for (const id of ["filter-label", "filter-outcome", "filter-kind", "sort-by", "sort-method", "sort-order"]) {
      byId(id).addEventListener("change", () => this.update());
    }
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    for (const name of ["threshold", "opacity"]) {
      byId(name).addEventListener("input", (event) => {
        this.state[name] = Number(event.target.value);
        event.target.nextElementSibling.value = this.state[name].toFixed(2);
        this.redraw();
      });
    }
    for (const [id, name] of [["true-boxes", "trueBoxes"], ["found-boxes", "foundBoxes"]]) {
      byId(id).addEventListener("change", (event) => {
        this.state[name] = event.target.checked;
        this.redraw();
      });
    }
    byId("reset").addEventListener("click", () => this.reset());
    byId("previous").addEventListener("click", () => this.turn(-1));
    byId("next").addEventListener("click", () => this.turn(1));
    new ResizeObserver(() => this.redraw()).observe(byId("cards"));
  }

  reset() {
    byId("filters").reset();
    this.hidden.clear();
    for (const id of ["true-boxes", "found-boxes"]) byId(id).checked = true;
    Object.assign(this.state, DEFAULTS, { trueBoxes: true, foundBoxes: true });
    for (const name of ["threshold", "opacity"]) {
      byId(name).value = DEFAULTS[name];
      byId(name).nextElementSibling.value = DEFAULTS[name].toFixed(2);
    }
    this.update();
    this.redraw();
  }

  /** Show the images of one line of the summary. */
  only({ label = null, outcome = "", kind = "" }) {
    byId("filters").reset();
    this.hidden.clear();
    byId("filter-label").value = label === null ? "" : String(this.labels.indexOf(label));
    byId("filter-outcome").value = outcome;
    byId("filter-kind").value = kind;
    this.update();
  }

  setRun(run) {
    this.state.run = run;
    this.update();
    this.strip();
  }

  turn(step) {
    this.state.page += step;
    this.render();
    byId("gallery-title").scrollIntoView();
  }

  // --- which images -----------------------------------------------------------------------------

  /** Filter and sort anew. */
  update() {
    const label = byId("filter-label").value, outcome = byId("filter-outcome").value, kind = byId("filter-kind").value;
    const by = byId("sort-by").value, method = Number(byId("sort-method").value);
    const sign = byId("sort-order").value === "ascending" ? 1 : -1;
    byId("sort-method").disabled = by === "" || by === "probability";
    byId("sort-order").disabled = by === "";
    const { run } = this.state;
    this.order = this.data.images.map((_, position) => position).filter((position) => {
      const seen = this.seen(position, run);
      if (label !== "" && this.data.images[position].label !== this.labels[Number(label)]) return false;
      if (outcome !== "" && seen.correct !== (outcome === "right")) return false;
      return kind === "" || seen.kinds.includes(kind);
    });
    if (by !== "") {
      const key = (position) => {
        const seen = this.seen(position, run);
        return by === "probability" ? seen.probability : seen.scores[method][Number(by)];
      };
      this.order.sort((a, b) => {
        const [one, other] = [key(a), key(b)];
        if (one === null || other === null) return (one === null) - (other === null); // the unmeasured last
        return sign * (one - other);
      });
    }
    this.state.page = 0;
    this.render();
  }

  /** The cards of the page. */
  render() {
    const pages = Math.max(Math.ceil(this.order.length / PAGE_SIZE), 1);
    this.state.page = Math.min(Math.max(this.state.page, 0), pages - 1);
    const { page } = this.state, total = this.data.images.length;
    const shown = this.order.slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
    this.forget(byId("cards"));
    if (this.pictures.size > 8 * PAGE_SIZE) this.pictures.clear();
    byId("cards").replaceChildren(...shown.map((position) => this.card(position)));
    if (!shown.length) byId("cards").append(element("p", { class: "note" }, "No image passes these filters."));
    byId("status").textContent = `${this.order.length.toLocaleString("en")} of ${total.toLocaleString("en")} images`;
    byId("page-status").textContent = `Page ${page + 1} of ${pages}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
  }

  card(position) {
    const image = this.data.images[position];
    const head = element("header", {}, element("h3", {}, image.id), element("p", {}, "true class ", element("b", {}, image.label)), element("p", { class: "fine" }, `no. ${image.index}`));
    const rows = this.data.runs.map((_, run) => this.row(position, run));
    return element("article", { class: "card", "data-position": position }, head, ...rows);
  }

  row(position, run) {
    const methods = this.data.methods.map((_, method) => method).filter((method) => !this.hidden.has(method));
    const tiles = [-1, ...methods].map((method) => this.tile(position, run, method));
    return element("div", { class: "card-row" }, this.info(position, run), element("div", { class: "tiles", role: "group", "aria-label": "Image and maps" }, ...tiles));
  }

  info(position, run) {
    const seen = this.seen(position, run);
    const share = seen.probability === null ? 0 : 100 * seen.probability;
    const info = element("div", { class: "info" });
    if (this.data.runs.length > 1) info.append(element("p", { class: "info-run" }, this.data.runs[run].name));
    info.append(
      element("p", { class: seen.correct ? "outcome right" : "outcome wrong" }, element("span", { class: "sign", role: "img", "aria-label": seen.correct ? "right" : "wrong" }, seen.correct ? "✓" : "✗"), element("b", {}, seen.predicted)),
      element("p", { class: "probability" }, element("span", { class: "share", style: `--value:${share}%` }), `${share.toFixed(1)} %`),
      element("p", { class: "fine" }, "maps explain ", element("b", {}, seen.target)),
    );
    if (seen.kinds.length) info.append(element("ul", { class: "kinds" }, ...seen.kinds.map((kind) => element("li", {}, kind))));
    return info;
  }

  // --- tiles ------------------------------------------------------------------------------------

  /** A picture (method -1), or a method's map over it, as a button that enlarges it. */
  tile(position, run, method) {
    const tile = this.canvas(position, run, method);
    const caption = element("span", { class: "caption" });
    if (method < 0) caption.append(element("b", {}, "image"));
    else {
      caption.append(element("b", {}, this.data.methods[method]));
      const scores = this.seen(position, run).scores[method];
      const known = this.captions.filter(([, place]) => scores[place] !== null);
      const spans = known.map(([name, place]) => element("span", {}, `${name} ${scores[place].toFixed(2)}`));
      tile.live = spans[known.findIndex(([, place]) => this.data.scores[place].key === "iou")] || element("span");
      tile.recorded = tile.live.textContent;
      caption.append(...spans, spans.includes(tile.live) ? "" : tile.live);
    }
    const button = element("button", { type: "button", class: "tile" }, tile.canvas, caption);
    button.addEventListener("click", () => viewer.open(position, run, method));
    return button;
  }

  canvas(position, run, method) {
    const [height, width] = this.data.images[position].size;
    const canvas = element("canvas", { role: "img", style: `aspect-ratio:${width}/${height}` });
    const tile = { canvas, position, run, method, shown: false };
    canvas.setAttribute("aria-label", this.describe(tile));
    this.tiles.set(canvas, tile);
    this.observer.observe(canvas);
    return tile;
  }

  describe({ position, run, method, found }) {
    const { id, label } = this.data.images[position];
    const where = this.data.runs.length > 1 ? `, ${this.data.runs[run].name}` : "";
    if (method < 0) return `Image ${id}, true class ${label}${where}`;
    if (found === null) return `${this.data.methods[method]}: no map of ${id}, it is degenerate${where}`;
    return `Map of ${this.data.methods[method]} over ${id}${found ? `, found boxes: ${found.length}` : ""}${where}`;
  }

  /** Drop the tiles below an element. */
  forget(parent) {
    for (const canvas of parent.querySelectorAll("canvas")) {
      this.observer.unobserve(canvas);
      this.visible.delete(this.tiles.get(canvas));
      this.tiles.delete(canvas);
    }
  }

  see(entries) {
    for (const { target, isIntersecting } of entries) {
      const tile = this.tiles.get(target);
      if (!tile) continue;
      tile.shown = isIntersecting;
      if (isIntersecting) {
        this.visible.add(tile);
        this.draw(tile);
      } else {
        this.visible.delete(tile);
        tile.layer = undefined; // its memory goes, the drawing stays
      }
    }
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      for (const tile of this.visible) this.draw(tile);
    });
  }

  picture(position) {
    if (!this.pictures.has(position)) {
      const picture = new Image();
      picture.src = `data:image/jpeg;base64,${this.data.thumbnails[position]}`;
      this.pictures.set(position, picture);
    }
    return this.pictures.get(position);
  }

  /** A tile's map, enlarged, and its colours; null for a degenerate one. */
  layer(tile) {
    if (tile.layer !== undefined) return tile.layer;
    const [height, width] = this.data.images[tile.position].size;
    const map = this.seen(tile.position, tile.run).maps[tile.method];
    const values = map && litcamMaps.upsample(litcamMaps.decode(map[2]), map[0], map[1], height, width);
    if (!values) return (tile.layer = null);
    const colours = element("canvas");
    colours.width = width;
    colours.height = height;
    colours.getContext("2d").putImageData(litcamMaps.colours(values, height, width, this.table), 0, 0);
    return (tile.layer = { values, colours });
  }

  draw(tile) {
    const picture = this.picture(tile.position);
    if (!picture.complete) {
      picture.addEventListener("load", () => tile.shown && this.draw(tile), { once: true });
      return;
    }
    const { canvas, method } = tile, { state } = this;
    const [height, width] = this.data.images[tile.position].size;
    const side = Math.round((canvas.clientWidth || 150) * Math.min(devicePixelRatio || 1, 2));
    canvas.width = side;
    canvas.height = Math.round((side * height) / width);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    if (picture.naturalWidth) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const unit = side / width, pixel = side / (canvas.clientWidth || 150);
    const truth = this.seen(tile.position, tile.run).boxes;
    const layer = method < 0 ? undefined : this.layer(tile);
    if (layer) {
      context.globalAlpha = state.opacity;
      context.drawImage(layer.colours, 0, 0, canvas.width, canvas.height);
      context.globalAlpha = 1;
      tile.found = litcamMaps.boxes(layer.values, height, width, state.threshold);
      canvas.dataset.found = JSON.stringify(tile.found);
    } else if (layer === null) {
      tile.found = null;
      this.strike(context, canvas, pixel);
    }
    if (state.trueBoxes) this.frame(context, truth, unit, pixel, "#ffffff", []);
    if (state.foundBoxes && layer) this.frame(context, tile.found, unit, pixel, "#3fe0ff", [5 * pixel, 3 * pixel]);
    if (tile.live) this.write(tile, layer, truth, height, width);
    canvas.setAttribute("aria-label", this.describe(tile));
    canvas.dataset.drawn = `${state.threshold} ${state.opacity}`;
  }

  frame(context, boxes, unit, pixel, colour, dash) {
    for (const [style, extra, pattern] of [["rgb(0 0 0 / 0.6)", 2, []], [colour, 0, dash]]) {
      context.strokeStyle = style;
      context.lineWidth = (1.75 + extra) * pixel;
      context.setLineDash(pattern);
      const inset = 1.5 * pixel;
      for (const [x0, y0, x1, y1] of boxes) {
        context.strokeRect(x0 * unit + inset, y0 * unit + inset, Math.max((x1 - x0) * unit - 2 * inset, 1), Math.max((y1 - y0) * unit - 2 * inset, 1));
      }
    }
    context.setLineDash([]);
  }

  /** A degenerate map: the picture dimmed. */
  strike(context, canvas, pixel) {
    context.fillStyle = "rgb(90 94 100 / 0.72)";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.strokeStyle = "rgb(255 255 255 / 0.55)";
    context.lineWidth = pixel;
    context.beginPath();
    context.moveTo(0, canvas.height);
    context.lineTo(canvas.width, 0);
    context.stroke();
  }

  /** The IoU of the found with the true boxes, at a threshold other than the first instead of the recorded one. */
  write(tile, layer, truth, height, width) {
    let text = layer ? tile.recorded : "degenerate";
    if (layer && truth.length) {
      const seen = this.seen(tile.position, tile.run);
      if (!this.regions.has(seen)) this.regions.set(seen, litcamMaps.region(truth, height, width));
      const iou = litcamMaps.iou(litcamMaps.region(tile.found, height, width), this.regions.get(seen));
      tile.canvas.dataset.iou = iou;
      if (this.state.threshold !== DEFAULTS.threshold) text = `IoU ${iou.toFixed(2)} at ${this.state.threshold.toFixed(2)}`;
    }
    tile.live.textContent = text;
    tile.live.className = text === tile.recorded ? "" : "live";
  }

  /** A few evenly spaced images under the title, with the maps of the method that stands best. */
  strip() {
    const strip = byId("strip"), count = Math.min(8, this.data.images.length);
    const leader = JSON.parse(strip.dataset.leaders)[this.state.run];
    const free = this.data.methods.findIndex((method) => !this.data.controls.includes(method));
    const method = Math.max(this.data.methods.indexOf(leader) >= 0 ? this.data.methods.indexOf(leader) : free, -1);
    this.forget(strip);
    const positions = Array.from({ length: count }, (_, i) => Math.floor(((i + 0.5) * this.data.images.length) / count));
    strip.replaceChildren(...positions.map((position) => {
      const { canvas } = this.canvas(position, this.state.run, method);
      const button = element("button", { type: "button", class: "tile" }, canvas);
      button.addEventListener("click", () => viewer.open(position, this.state.run, method));
      return button;
    }));
    byId("strip-words").textContent = method < 0 ? "Evenly spaced images of the gallery" : `Maps of ${this.data.methods[method]} on evenly spaced images of the gallery`;
  }
}

/** One map enlarged, with all scores of its image. */
class Viewer {
  constructor(gallery) {
    this.gallery = gallery;
    this.dialog = byId("viewer");
    byId("viewer-close").addEventListener("click", () => this.dialog.close());
    byId("viewer-previous").addEventListener("click", () => this.step(-1));
    byId("viewer-next").addEventListener("click", () => this.step(1));
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
    this.dialog.addEventListener("close", () => this.gallery.forget(byId("viewer-tile")));
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.step(-1);
      if (event.key === "ArrowRight") this.step(1);
    });
    byId("viewer-tile").addEventListener("pointermove", (event) => this.read(event));
    byId("viewer-tile").addEventListener("pointerleave", () => (byId("viewer-read").textContent = "\u00a0"));
  }

  open(position, run, method) {
    Object.assign(this, { position, run, method });
    this.show();
    if (!this.dialog.open) this.dialog.showModal();
  }

  step(by) {
    const count = this.gallery.data.methods.length + 1; // the picture itself is one
    this.method = ((this.method + 1 + by + count) % count) - 1;
    this.show();
  }

  show() {
    const { gallery, position, run, method } = this;
    const { data } = gallery, seen = gallery.seen(position, run), image = data.images[position];
    gallery.forget(byId("viewer-tile"));
    this.tile = gallery.canvas(position, run, method);
    byId("viewer-tile").replaceChildren(this.tile.canvas);
    byId("viewer-title").textContent = `${method < 0 ? "image" : data.methods[method]} · ${image.id}`;
    const of = data.runs.length > 1 ? `${data.runs[run].name}: ` : "";
    const sure = seen.probability === null ? "" : ` (${(100 * seen.probability).toFixed(1)} %)`;
    byId("viewer-words").textContent = `${of}true class ${image.label}, predicted ${seen.predicted}${sure}, ${seen.correct ? "right" : "wrong"}; maps explain ${seen.target}${seen.kinds.length ? `; ${seen.kinds.join(", ")}` : ""}`;
    const head = element("tr", {}, element("th", { scope: "col" }, "method"), ...data.scores.map((score) => element("th", { scope: "col", class: "num" }, score.name)));
    const rows = data.methods.map((name, place) => element("tr", place === method ? { class: "current" } : {}, element("th", { scope: "row" }, name), ...seen.scores[place].map((value) => element("td", { class: "num" }, litcamNumber(value)))));
    byId("viewer-scores").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
  }

  read(event) {
    const { tile } = this;
    const values = tile.layer && tile.layer.values;
    if (!values) return;
    const [height, width] = this.gallery.data.images[tile.position].size, box = tile.canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * width), y = Math.floor(((event.clientY - box.top) / box.height) * height);
    if (x < 0 || y < 0 || x >= width || y >= height) return;
    byId("viewer-read").textContent = `map ${values[y * width + x].toFixed(3)} at x ${x}, y ${y}`;
  }
}

let viewer = null;
