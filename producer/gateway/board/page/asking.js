// Dialogs of the whole page: the key that opens it, and the keys of the keyboard.

import * as api from "./api.js";
import { ask, h, setText } from "./dom.js";

export function signIn(told, onKey) {
  const input = h("input", { type: "password", id: "api-key", autocomplete: "off", spellcheck: "false", required: true });
  const wrong = h("p", { class: "wrong", role: "alert" });
  setText(wrong, api.key() ? told : "");
  const form = h("form", { class: "panel sign-in" }, h("h1", {}, "This dashboard needs a key"),
    h("p", { class: "muted" }, "An API key with a role: ", h("code", {}, "tokenbus keys create --role viewer"), ". It stays in this tab."),
    h("label", {}, "API key", input), wrong,
    h("div", { class: "buttons" }, h("button", { type: "submit", class: "primary" }, "Open")));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    api.keep(input.value.trim());
    onKey();
  });
  queueMicrotask(() => input.focus());
  return form;
}

const KEYS = [
  ["1 … 4", "the views, from left to right"],
  ["/", "search jobs"],
  ["↑ ↓", "from row to row of a list"],
  ["← →", "along a chart"],
  ["t", "light or dark"],
  ["Esc", "close the job that is shown"],
  ["?", "this list"],
];

export async function showKeys(isOn) {
  const answer = await ask("Keys", h("table", {}, h("tbody", {}, ...KEYS.map(([key, told]) =>
    h("tr", {}, h("td", {}, h("kbd", {}, key)), h("td", {}, told))))),
  [["toggle", isOn ? "Turn single keys off" : "Turn single keys on"], ["", "Close", "primary"]]);
  return answer === "toggle";
}
