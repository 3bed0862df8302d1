// Line charts and bars. A line chart: title, series [{name, points [[x, y], ...], reference?}], range [low, high]
// or null, xRange likewise, marks {name: x}, xs: "epoch" or what the x axis is, width, density [[x,
// [counts from 0 to 1]]]. Bars: title, bars [{name, value from 0 to 1, text, mark?}], hint.

const HEIGHT = 230, LEFT = 44, TOP = 10, BOTTOM = 200; // units of the drawing, about pixels

function ticks(low, high, count, isWhole = false) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const steps = [1, 2, 2.5, 5, 10].map((factor) => factor * power);
  const step = steps.find((size) => size >= raw && (!isWhole || Number.isInteger(size))) ?? 1;
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

function extent(values, otherwise) {
  if (!values.length) return otherwise;
  const low = Math.min(...values), high = Math.max(...values);
  return low < high ? [low, high] : [low - 0.5, high + 0.5];
}

function color(series, index) {
  return series.reference ? "var(--reference)" : `var(--series-${index % 4})`;
}

function lineChart(chart) {
  const { title, series, range, marks = {}, density = [], xs = "epoch", width = 420 } = chart;
  const right = width - 12;
  const points = series.flatMap((one) => one.points);
  const [x0, x1] = chart.xRange ?? extent([...points, ...density].map((p) => p[0]), [0, 1]);
  const [y0, y1] = range ?? extent(points.map((p) => p[1]), [0, 1]);
  const toX = (x) => LEFT + ((x - x0) / (x1 - x0)) * (right - LEFT);
  const toY = (y) => BOTTOM - ((y - y0) / (y1 - y0)) * (BOTTOM - TOP);
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": title });

  const wide = density.length > 1 ? (right - LEFT) / Math.max(x1 - x0, density.length - 1) : 24;
  for (const [x, counts] of density) {
    const most = Math.max(...counts), high = (BOTTOM - TOP) / counts.length;
    counts.forEach((count, i) => {
      if (!count) return;
      svg.append(drawn("rect", {
        x: Math.max(LEFT, toX(x) - wide / 2), y: BOTTOM - (i + 1) * high, height: high,
        width: Math.min(right, toX(x) + wide / 2) - Math.max(LEFT, toX(x) - wide / 2),
        fill: `rgba(var(--cell), ${0.6 * count / most})`,
      }));
    });
  }
  for (const y of ticks(y0, y1, 4)) {
    svg.append(
      drawn("line", { class: "grid", x1: LEFT, x2: right, y1: toY(y), y2: toY(y) }),
      drawn("text", { x: LEFT - 6, y: toY(y) + 4, "text-anchor": "end" }, number(y)),
    );
  }
  const isWhole = xs === "epoch";
  for (const x of ticks(x0, x1, isWhole ? 8 : 10, isWhole)) {
    svg.append(drawn("text", { x: toX(x), y: BOTTOM + 15, "text-anchor": "middle" }, number(x)));
  }
  const middle = (LEFT + right) / 2;
  svg.append(drawn("text", { x: middle, y: HEIGHT - 2, "text-anchor": "middle" }, xs));
  for (const x of Object.values(marks)) {
    svg.append(drawn("line", { class: "mark", x1: toX(x), x2: toX(x), y1: TOP, y2: BOTTOM }));
  }
  series.forEach((one, index) => {
    const style = `stroke: ${color(one, index)}${one.reference ? "; stroke-dasharray: 4 4" : ""}`;
    const path = one.points.map(([x, y]) => `${toX(x).toFixed(1)},${toY(y).toFixed(1)}`).join(" ");
    svg.append(drawn("polyline", { class: "line", style, points: path }));
    for (const [x, y] of one.points.length < 30 ? one.points : []) {
      const dot = { cx: toX(x), cy: toY(y), r: 2.5, style: `fill: ${color(one, index)}` };
      svg.append(drawn("circle", dot));
    }
  });

  const legend = element("div", { class: "legend" });
  series.forEach((one, index) => {
    const line = element("i", { style: `background: ${color(one, index)}` });
    const last = one.points.at(-1);
    const value = element("b", {}, last && isWhole ? number(last[1]) : "");
    legend.append(element("span", {}, line, `${one.name} `, value));
  });
  for (const [name, x] of Object.entries(marks)) {
    legend.append(element("span", {}, `┊ ${name} ${number(x)}`));
  }
  const box = element("div", { class: "chart" }, element("h3", {}, title), svg, legend);
  showValues(box, svg, series, (event) => {
    const area = svg.getBoundingClientRect();
    return ((event.clientX - area.left) / area.width) * width;
  }, toX, xs);
  return box;
}

// The values under the pointer.
function showValues(box, svg, series, placeOf, toX, xs) {
  const every = [...new Set(series.flatMap((one) => one.points.map((p) => p[0])))];
  if (!every.length) return;
  const tip = element("div", { class: "tip", hidden: "" });
  const line = drawn("line", { class: "mark", y1: TOP, y2: BOTTOM, visibility: "hidden" });
  box.append(tip);
  svg.append(line);
  svg.addEventListener("pointermove", (event) => {
    const at = placeOf(event);
    const x = every.reduce((a, b) => (Math.abs(toX(b) - at) < Math.abs(toX(a) - at) ? b : a));
    tip.replaceChildren(`${xs.split(",")[0]} ${number(x)}`);
    for (const one of series) {
      const point = one.points.find((p) => p[0] === x);
      if (point) tip.append(element("br"), `${one.name} ${number(point[1], 4)}`);
    }
    for (const name of ["x1", "x2"]) line.setAttribute(name, toX(x));
    line.setAttribute("visibility", "visible");
    tip.hidden = false;
    const left = event.clientX - box.getBoundingClientRect().left + 14;
    tip.style.left = `${Math.max(0, Math.min(left, box.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = "2.2rem";
  });
  svg.addEventListener("pointerleave", () => {
    tip.hidden = true;
    line.setAttribute("visibility", "hidden");
  });
}

function barChart({ title, bars, hint }) {
  const rows = bars.flatMap(({ name, value, text, mark = null }) => {
    const track = element("span", { class: "track" }, element("i", { style: `width: ${100 * value}%` }));
    if (mark !== null) track.append(element("b", { style: `left: ${100 * mark}%` }));
    return [element("span", {}, name), track, element("span", { class: "number" }, text)];
  });
  return element("div", { class: "chart" }, element("h3", {}, title),
    element("div", { class: "bars" }, ...rows), element("p", { class: "hint" }, hint));
}

const drawChart = (chart) => (chart.bars ? barChart : lineChart)(chart);
