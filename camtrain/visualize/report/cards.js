// A card per picture: the picture under the heatmap, its boxes, names, scores and raw range.

const TRUE_BOX = "#ffffff", PREDICTED_BOX = "#ff5ce1";
const SMALLEST = 256; // pixels of the longer side of a canvas

// Boxes of both kinds, as parts of the picture: no dark outline hides another box's colour.
function strokeBoxes(context, kinds) {
  const { width, height } = context.canvas;
  const thick = Math.max(2, Math.round(Math.max(width, height) / 128));
  const stroke = (boxes, line, style) => {
    context.lineWidth = line;
    context.strokeStyle = style;
    for (const [x0, y0, x1, y1] of boxes) {
      context.strokeRect(x0 * width + thick / 2, y0 * height + thick / 2,
        (x1 - x0) * width - thick, (y1 - y0) * height - thick);
    }
  };
  for (const [boxes] of kinds) stroke(boxes, thick + 2, "#141414");
  for (const [boxes, style] of kinds) stroke(boxes, thick, style);
}

class Card {
  // picture: {src, wh, covered, path, name, boxes}; looks: what the network said, by epoch.
  constructor(picture, looks) {
    this.picture = picture;
    this.looks = looks;
    const [width, height] = picture.wh;
    this.factor = Math.max(1, Math.floor(SMALLEST / Math.max(width, height)));
    const size = { width: width * this.factor, height: height * this.factor };
    this.canvas = element("canvas", { ...size, "aria-label": picture.path });
    this.words = element("div", { class: "words" });
    this.root = element("article", { class: "card" }, this.canvas, this.words);
    this.heat = element("canvas", size);
    this.image = new Image();
    this.image.src = picture.src;
    this.ready = this.image.decode();
  }

  // One range for all epochs, of the maps of one side.
  sharedRange(side) {
    const ranges = this.looks.map((look) => look?.[side]?.map.range).filter(Boolean);
    return [Math.min(...ranges.map((r) => r[0])), Math.max(...ranges.map((r) => r[1]))];
  }

  show(place, view) {
    const look = this.looks[place], { width, height } = this.canvas;
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = this.factor < 2;
    context.globalAlpha = 1;
    context.drawImage(this.image, 0, 0, width, height);
    this.words.replaceChildren();
    if (!look) return;
    const side = look[view.side] ? view.side : "predicted";
    const { map, boxes } = look[side];
    const range = view.scale === "shared" && map.range ? this.sharedRange(side) : null;
    const heat = colored(map, width, height, this.picture.covered, range);
    this.heat.getContext("2d").putImageData(heat, 0, 0);
    context.globalAlpha = view.opacity;
    context.drawImage(this.heat, 0, 0);
    context.globalAlpha = 1;
    if (view.boxes) {
      strokeBoxes(context, [[this.picture.boxes, TRUE_BOX], [boxes, PREDICTED_BOX]]);
    }
    this.describe(look, map, range);
  }

  describe(look, map, range) {
    const verdict = look.is_right ? "is-right" : "is-wrong";
    const row = (label, name, score, kind = "") => element("div", { class: "row" },
      element("span", {}, label), element("span", { class: kind }, name),
      element("span", { class: "number" }, score === null ? "" : score.toFixed(2)));
    const located = { true: "box right", false: "box wrong", null: "" }[String(look.is_located)];
    const [low, high] = range ?? map.range?.slice(0, 2) ?? [null, null];
    this.words.append(
      row("true", this.picture.name, look.true ? look.true.score : null),
      row("predicted", look.predicted.name, look.predicted.score, verdict),
      element("div", { class: "row" }, element("span", {}, "verdict"),
        element("span", { class: verdict }, look.is_right ? "right" : "wrong"),
        element("span", { class: look.is_located ? "is-right" : "is-wrong" }, located)),
      element("div", { class: "range" }, number(low),
        element("span", { class: "bar", style: `background: ${gradient}` }), number(high)),
      element("div", { class: "raw path" }, map.range
        ? `raw ${number(map.range[0])} to ${number(map.range[1])}, mean ${number(map.range[2])}`
        : "raw map: not finite"),
      element("div", { class: "path" }, this.picture.path),
    );
  }
}
