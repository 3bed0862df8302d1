// Puts the page together from its content, and follows a running training.

byId("title").textContent = content.title;
byId("state").textContent = content.state;

function hideWithout(section, is_there) {
  byId(`${section}-section`).hidden = !is_there;
}

hideWithout("verdict", content.verdict || content.blanks);
byId("verdict").textContent = content.verdict ?? "";
byId("blanks").textContent = content.blanks
  ? `Of pictures that show nothing it says: ${content.blanks}.` : "";

byId("curves").append(...content.curves.map(lineChart));
hideWithout("curves", content.curves.length);
byId("test-section").hidden = !Object.keys(content.test).length;
for (const [name, [text, value]] of Object.entries(content.test)) {
  const score = element("span", { title: name }, text, element("b", {}, value));
  byId("test").append(score);
}
byId("maps").append(...content.maps.map(lineChart));
hideWithout("maps", content.maps.length);
byId("calibration").append(...content.calibration.map(lineChart));
hideWithout("calibration", content.calibration.length);
byId("localization").append(...content.localization.map(drawChart));
hideWithout("localization", content.localization.length);
byId("faithfulness").append(...content.faithfulness.map(lineChart));
hideWithout("faithfulness", content.faithfulness.length);

// The pictures and their controls.

const epochs = content.epochs;
const cards = content.pictures.map((picture, i) =>
  new Card(picture, epochs.map((epoch) => epoch.looks[i])));
const mistakes = content.mistakes.map(({ picture, look }) => new Card(picture, [look]));
byId("pictures").append(...cards.map((card) => card.root));
byId("mistakes").append(...mistakes.map((card) => card.root));
hideWithout("pictures", epochs.length);
hideWithout("mistakes", mistakes.length);
byId("mistakes-hint").textContent = `Of all validation pictures after epoch ${content.classes_epoch}`
  + `, boxes at the threshold ${content.mistakes_threshold}; opacity, class, boxes as above.`;

const view = memory.read("view",
  { place: null, opacity: 0.5, side: "true", boxes: true, scale: "own" });

const place = () => Math.min(view.place ?? epochs.length - 1, epochs.length - 1);

function show() {
  for (const card of cards) card.show(place(), view);
}

function showMistakes() {
  for (const card of mistakes) card.show(0, { ...view, scale: "own" });
}

function reflect() {
  byId("epoch").max = epochs.length - 1;
  byId("epoch").value = place();
  byId("epoch-shown").textContent = epochs.length ? epochs[place()].epoch : "";
  byId("threshold").textContent = epochs.length ? epochs[place()].threshold : "";
  byId("opacity").value = view.opacity;
  byId("opacity-shown").textContent = `${Math.round(100 * view.opacity)} %`;
  byId("boxes").checked = view.boxes;
  document.querySelector(`input[name=side][value=${view.side}]`).checked = true;
  document.querySelector(`input[name=scale][value=${view.scale}]`).checked = true;
}

function change(changes) {
  Object.assign(view, changes);
  memory.write("view", view);
  reflect();
  show();
  if (!("place" in changes)) showMistakes();
}

// At the newest epoch the slider stays at the newest when the page is loaded again.
function moveTo(value) {
  change({ place: value >= epochs.length - 1 ? null : value });
}

byId("epoch").addEventListener("input", (event) => moveTo(Number(event.target.value)));
byId("opacity").addEventListener("input", (event) => change({ opacity: Number(event.target.value) }));
byId("boxes").addEventListener("change", (event) => change({ boxes: event.target.checked }));
for (const name of ["side", "scale"]) {
  for (const input of document.querySelectorAll(`input[name=${name}]`)) {
    input.addEventListener("change", () => change({ [name]: input.value }));
  }
}

let player = null;
byId("play").addEventListener("click", () => {
  clearInterval(player);
  const isPlaying = player !== null;
  player = isPlaying ? null : setInterval(() => moveTo((place() + 1) % epochs.length), 600);
  byId("play").textContent = isPlaying ? "\u25B6" : "\u23F8";
  byId("play").setAttribute("aria-label", isPlaying ? "play" : "pause");
});

const legend = byId("legend");
const bar = "display: inline-block; width: 110px; height: 10px; border-radius: 5px; margin: 0 .4rem;";
legend.append("heatmap 0", element("span", { style: `${bar} background: ${gradient}` }), "1");
for (const [name, stroke] of [["true box", TRUE_BOX], ["predicted box, threshold ", PREDICTED_BOX]]) {
  legend.append(element("span", { class: "swatch", style: `border-color: ${stroke}` }), name);
}
legend.append(element("span", { id: "threshold" }));

if (epochs.length < content.epochs_seen) {
  legend.append(` · there is room for ${epochs.length} of ${content.epochs_seen} epochs`);
}

reflect();
Promise.all([...cards, ...mistakes].map((card) => card.ready)).then(() => {
  show();
  showMistakes();
  document.documentElement.dataset.isDrawn = "true";
});

// Classes.

const { classes } = content;
hideWithout("classes", classes);
if (classes) {
  byId("classes-hint").textContent = `After epoch ${content.classes_epoch}; click a heading to sort.`;
  if (classes.matrix) byId("confusion").append(confusionMatrix(classes.names, classes.matrix));
  const tables = byId("classes");
  const add = (title, table) => tables.append(element("div", {}, element("h3", {}, title), table));
  add(classes.title ?? "Every class", sortableTable(classes.columns, classes.rows, classes.sorted));
  if (classes.pairs.length) {
    const columns = [
      { name: "true", kind: "text" }, { name: "taken for", kind: "text" },
      { name: "pictures", kind: "number" }, { name: "of the class", kind: "percent" },
    ];
    add("What is taken for what", sortableTable(columns, classes.pairs, { sortBy: 2 }));
  }
}

byId("settings").append(
  ...Object.entries(content.settings).map(([title, rows]) => settingsTable(title, rows)));

// Following a running training.

const follow = byId("follow");
follow.checked = memory.read("follow", false);
let timer = null;
function setTimer() {
  clearTimeout(timer);
  if (!follow.checked) return;
  timer = setTimeout(() => {
    memory.write("scroll", window.scrollY);
    window.location.reload();
  }, 10000);
}
follow.addEventListener("change", () => {
  memory.write("follow", follow.checked);
  setTimer();
});
setTimer();
if (follow.checked) window.scrollTo(0, memory.read("scroll", 0));
