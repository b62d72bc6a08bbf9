// Elements by hand: no text ever becomes markup, and a list keeps the nodes of the rows that stay.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") for (const [key, each] of Object.entries(value)) node.dataset[key] = each;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
    return;
  }
  const text = String(value);
  if (node.getAttribute(name) !== text) node.setAttribute(name, text);
}

const rowsOf = new WeakMap();

// Let `parent` have a node for each item, in their order. `make(item)` returns { node, update }, which
// is kept for as long as an item has the same key.
export function reconcile(parent, items, keyOf, make) {
  const before = rowsOf.get(parent) ?? new Map();
  const now = new Map();
  let at = parent.firstChild;
  for (const item of items) {
    const key = keyOf(item);
    if (now.has(key)) continue;
    const row = before.get(key) ?? make(item);
    row.update(item);
    now.set(key, row);
    if (row.node === at) at = at.nextSibling;
    else parent.insertBefore(row.node, at);
  }
  for (const [key, row] of before) if (!now.has(key)) row.node.remove();
  rowsOf.set(parent, now);
}

// A dialog with an answer: the value of the button that closed it, "" for none.
export function ask(title, text, buttons) {
  return new Promise((resolve) => {
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" },
      h("h2", { id: "dialog-title" }, title),
      ...[text].flat().map((each) => (typeof each === "string" ? h("p", {}, each) : each)),
      h("form", { method: "dialog", class: "buttons" },
        ...buttons.map(([value, label, kind]) => h("button", { value, class: kind ?? "" }, label))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

let announcing = 0;

// What somebody who does not see the page is told, without moving to it.
export function announce(text) {
  const node = document.getElementById("announced");
  announcing += 1;
  const mine = announcing;
  node.textContent = "";
  setTimeout(() => {
    if (mine === announcing) node.textContent = text;
  }, 50);
}
