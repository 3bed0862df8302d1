// Tables that are sorted by their headings, and the confusion matrix.

// columns: [{name, kind: "text" | "number" | "percent"}]; rows: arrays of plain values.
function sortableTable(columns, rows, { sortBy = null, descending = true } = {}) {
  const body = element("tbody"), heads = element("tr");
  const shown = { text: (v) => v, number: (v) => number(v, 6), percent };
  let order = { column: sortBy, descending };

  function fill() {
    const { column, descending: falls } = order, sorted = [...rows];
    if (column !== null) {
      const rank = (row) => row[column];
      sorted.sort((one, other) => {
        const a = rank(one), b = rank(other);
        if (a === null || b === null) return (a === null) - (b === null); // unknown comes last
        return (falls ? -1 : 1) * (typeof a === "string" ? a.localeCompare(b) : a - b);
      });
    }
    body.replaceChildren(...sorted.map((row) => element("tr", {}, ...row.map((value, i) =>
      element("td", { class: columns[i].kind === "text" ? "" : "number" },
        shown[columns[i].kind](value))))));
    [...heads.children].forEach((head, i) => {
      const way = falls ? "descending" : "ascending";
      head.setAttribute("aria-sort", i === column ? way : "none");
    });
  }

  columns.forEach((column, i) => {
    const button = element("button", { type: "button" }, column.name);
    button.addEventListener("click", () => {
      const again = order.column === i;
      order = { column: i, descending: again ? !order.descending : column.kind !== "text" };
      fill();
    });
    heads.append(element("th", { scope: "col" }, button));
  });
  fill();
  const table = element("table", {}, element("thead", {}, heads), body);
  return element("div", { class: "scrolling" }, table);
}

// names: K; matrix: K x K pictures, by true class (rows) and predicted class (columns).
function confusionMatrix(names, matrix) {
  const head = element("tr", {}, element("th", {}, "true \\ predicted"),
    ...names.map((name) => element("th", { scope: "col" }, name)));
  const rows = matrix.map((counts, i) => {
    const total = counts.reduce((sum, count) => sum + count, 0);
    return element("tr", {}, element("th", { scope: "row" }, names[i]), ...counts.map((count, j) => {
      const style = `background: rgba(var(--cell), ${total ? 0.75 * count / total : 0})`;
      const title = `${count} of ${total} pictures of ${names[i]} are taken for ${names[j]}`;
      return element("td", { style, title, class: i === j ? "own" : "" }, count || "");
    }));
  });
  return element("div", { class: "matrix" },
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
}

function settingsTable(title, settings) {
  const rows = Object.entries(settings).map(([name, value]) => element("tr", {},
    element("th", { scope: "row" }, name), element("td", {}, value)));
  return element("div", {}, element("h3", {}, title),
    element("div", { class: "scrolling" }, element("table", {}, element("tbody", {}, ...rows))));
}
