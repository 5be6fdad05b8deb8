"use strict";
// From grid to image, as litcam.heatmaps has it: no page, no state.

const litcamMaps = {
  /** Bytes of a base64 text. */
  decode(text) {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return bytes;
  },

  /** For each of `to` pixels the two of `from` cells it lies between, and the weight of the second. */
  taps(from, to) {
    const first = new Int32Array(to), second = new Int32Array(to), weight = new Float32Array(to);
    for (let i = 0; i < to; i++) {
      const place = Math.max(((i + 0.5) * from) / to - 0.5, 0);
      first[i] = Math.min(Math.floor(place), from - 1);
      second[i] = Math.min(first[i] + 1, from - 1);
      weight[i] = place - first[i];
    }
    return { first, second, weight };
  },

  /** A grid [gh, gw] enlarged bilinearly to [height, width], then scaled to [0, 1]; null for a constant one. */
  upsample(grid, gh, gw, height, width) {
    const rows = this.taps(gh, height), columns = this.taps(gw, width);
    const values = new Float32Array(height * width);
    let low = Infinity, high = -Infinity;
    for (let y = 0, at = 0; y < height; y++) {
      const above = rows.first[y] * gw, below = rows.second[y] * gw, v = rows.weight[y];
      for (let x = 0; x < width; x++, at++) {
        const left = columns.first[x], right = columns.second[x], u = columns.weight[x];
        const top = (1 - u) * grid[above + left] + u * grid[above + right];
        const bottom = (1 - u) * grid[below + left] + u * grid[below + right];
        const value = (values[at] = (1 - v) * top + v * bottom);
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    low = Math.fround(low);
    const span = Math.fround(high) - low;
    if (!(span > 0)) return null;
    for (let at = 0; at < values.length; at++) values[at] = (values[at] - low) / span;
    return values;
  },

  /** Bounding boxes [x0, y0, x1, y1] (ends exclusive) of the 8-connected components above a threshold. */
  boxes(values, height, width, threshold) {
    const limit = Math.fround(threshold);
    const parent = [], bounds = [];
    const root = (run) => {
      while (parent[run] !== run) run = parent[run] = parent[parent[run]];
      return run;
    };
    let before = [];
    for (let y = 0; y < height; y++) {
      const runs = [];
      for (let x = 0, row = y * width; x < width; x++) {
        if (!(values[row + x] > limit)) continue;
        const start = x;
        while (x < width && values[row + x] > limit) x++;
        const run = parent.length;
        parent.push(run);
        bounds.push([start, y, x, y + 1]);
        runs.push({ start, end: x, run });
        for (const other of before) {
          if (other.start > x || other.end < start) continue; // touching corners count
          const a = root(other.run), b = root(run);
          if (a !== b) parent[Math.max(a, b)] = Math.min(a, b);
        }
      }
      before = runs;
    }
    const merged = new Map();
    bounds.forEach((box, run) => {
      const known = merged.get(root(run));
      if (!known) merged.set(root(run), box.slice());
      else {
        known[0] = Math.min(known[0], box[0]);
        known[1] = Math.min(known[1], box[1]);
        known[2] = Math.max(known[2], box[2]);
        known[3] = Math.max(known[3], box[3]);
      }
    });
    return [...merged.values()];
  },

  /** The pixels whose centres lie in a box: 1, the others 0. */
  region(boxes, height, width) {
    const inside = new Uint8Array(height * width);
    const bound = (end, size) => Math.min(Math.max(Math.ceil(end - 0.5), 0), size);
    for (const [x0, y0, x1, y1] of boxes) {
      const from = bound(x0, width), to = bound(x1, width);
      for (let y = bound(y0, height); y < bound(y1, height); y++) inside.fill(1, y * width + from, y * width + Math.max(from, to));
    }
    return inside;
  },

  /** Intersection over union of two regions; 1 for two empty ones. */
  iou(one, other) {
    let both = 0, either = 0;
    for (let at = 0; at < one.length; at++) {
      both += one[at] & other[at];
      either += one[at] | other[at];
    }
    return either ? both / either : 1;
  },

  /** The colours of values in [0, 1]: an ImageData [height, width]. */
  colours(values, height, width, table) {
    const image = new ImageData(width, height);
    for (let at = 0, out = 0; at < values.length; at++, out += 4) {
      const colour = 3 * Math.min(Math.floor(values[at] * 256), 255);
      image.data[out] = table[colour];
      image.data[out + 1] = table[colour + 1];
      image.data[out + 2] = table[colour + 2];
      image.data[out + 3] = 255;
    }
    return image;
  },
};
