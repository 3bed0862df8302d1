// Class maps over pictures, by the arithmetic of camtrain.heatmaps: bilinear to the picture's size
// (pixel centres, edges repeated), then min-max.

const COLORS = bytes(content.colormap.colors);

// Raw values of a map, (rows x columns), from its bytes.
function valuesOf(map) {
  if (!map.values) {
    const [low, high] = map.range;
    map.values = Float64Array.from(bytes(map.levels), (v) => low + (v / 255) * (high - low));
  }
  return map.values;
}

// For each of `size` pixels along a side: two places in the map and the share of the second; -1
// where the network saw nothing. `start` and `end` are the part of the side that the map covers.
function places(size, count, start, end) {
  const made = { low: new Int32Array(size), high: new Int32Array(size), share: new Float32Array(size) };
  for (let i = 0; i < size; i += 1) {
    const at = ((i + 0.5) / size - start) / (end - start);
    if (at < 0 || at > 1) {
      made.low[i] = -1;
      continue;
    }
    const place = Math.min(Math.max(at * count - 0.5, 0), count - 1);
    made.low[i] = Math.floor(place);
    made.high[i] = Math.min(made.low[i] + 1, count - 1);
    made.share[i] = place - made.low[i];
  }
  return made;
}

// A map at the size of the canvas: raw values, NaN where the network saw nothing.
function upsampled(map, width, height, covered) {
  const values = valuesOf(map), [rows, columns] = map.hw, [x0, y0, x1, y1] = covered;
  const xs = places(width, columns, x0, x1), ys = places(height, rows, y0, y1);
  const heat = new Float64Array(width * height).fill(NaN);
  for (let y = 0; y < height; y += 1) {
    if (ys.low[y] < 0) continue;
    const top = ys.low[y] * columns, below = ys.high[y] * columns, share = ys.share[y];
    for (let x = 0; x < width; x += 1) {
      const a = xs.low[x], b = xs.high[x], part = xs.share[x];
      if (a < 0) continue;
      const upper = values[top + a] + part * (values[top + b] - values[top + a]);
      const lower = values[below + a] + part * (values[below + b] - values[below + a]);
      heat[y * width + x] = upper + share * (lower - upper);
    }
  }
  return heat;
}

function rangeOf(heat) {
  let low = Infinity, high = -Infinity;
  for (const value of heat) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
}

// The colours of a map at a size; `range` is the shared one, or null for the map's own.
function colored(map, width, height, covered, range) {
  const image = new ImageData(width, height), pixels = image.data;
  const heat = map.levels ? upsampled(map, width, height, covered) : null;
  const [low, high] = heat ? range ?? rangeOf(heat) : [0, 0];
  const reach = high - low;
  for (let i = 0; i < width * height; i += 1) {
    const part = heat && reach > 0 ? (heat[i] - low) / reach : 0;
    const color = 3 * Math.round(255 * Math.min(Math.max(part || 0, 0), 1)); // NaN becomes 0
    pixels[4 * i] = COLORS[color];
    pixels[4 * i + 1] = COLORS[color + 1];
    pixels[4 * i + 2] = COLORS[color + 2];
    pixels[4 * i + 3] = 255;
  }
  return image;
}

const gradient = `linear-gradient(to right, ${Array.from({ length: 17 }, (_, i) => {
  const place = 3 * Math.round((255 * i) / 16);
  return `rgb(${COLORS[place]}, ${COLORS[place + 1]}, ${COLORS[place + 2]})`;
}).join(", ")})`;
