// Small helpers: elements are built from text, never from markup, so that no class name or path
// can become a part of the page.

const content = JSON.parse(document.getElementById("content").textContent);
const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e5)) return value.toExponential(1);
  return value.toPrecision(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
}

const percent = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);

// Bytes that Python has written as base64.
function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// What the reader has chosen outlives a reload of the page, where the browser allows it.
const memory = {
  key: (name) => `${window.location.pathname} ${name}`,
  read(name, otherwise) {
    try {
      return JSON.parse(sessionStorage.getItem(memory.key(name))) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  write(name, value) {
    try {
      sessionStorage.setItem(memory.key(name), JSON.stringify(value));
    } catch { /* then it is forgotten */ }
  },
};
