// Dead letters: requests of jobs that failed, and entries that were none, each with its reason.

import * as api from "./api.js";
import { announce, ask, h, reconcile, setText } from "./dom.js";
import { bytes, moment, plural } from "./format.js";

const REFRESH_MS = 5000;

export class Letters {
  constructor(page) {
    this.page = page;
    this.told = h("span", { class: "muted", role: "status" });
    this.body = h("tbody");
    this.empty = h("p", { class: "empty", hidden: true }, "There are no dead letters.");
    this.node = h("section", { class: "panel", "aria-labelledby": "letters-title" },
      h("header", {}, h("h1", { class: "unseen" }, "Dead letters"), h("h2", { id: "letters-title" }, "Dead letters"), this.told),
      h("div", { class: "scroll" }, h("table", { "aria-labelledby": "letters-title" }, h("thead", {}, h("tr", {},
        ...["When", "Reason", "Job", "Tenant", "Size"].map((name) => h("th", { scope: "col" }, name)),
        h("th", { scope: "col" }, h("span", { class: "unseen" }, "What to do")))), this.body)),
      this.empty);
  }

  open() {
    this.refresh();
    this.timer ??= setInterval(() => this.refresh(), REFRESH_MS);
  }

  close() {
    clearInterval(this.timer);
    this.timer = undefined;
  }

  async refresh() {
    if (document.hidden) return;
    try {
      const { letters, is_whole: isWhole } = await api.letters(this.page.pool);
      setText(this.told, isWhole ? plural(letters.length, "letter") : `the newest ${letters.length}`);
      this.empty.hidden = letters.length > 0;
      reconcile(this.body, letters, (letter) => letter.entry, (letter) => this.row(letter));
    } catch (error) {
      this.page.failed(error);
    }
  }

  row(letter) {
    const reason = h("td", {}, h("span", { class: "badge", data: { kind: "failed" } }, letter.code), letter.field ? ` ${letter.field}` : "");
    if (letter.message || letter.request !== null) {
      reason.append(h("details", {}, h("summary", { class: "muted" }, "what it says"),
        letter.message ? h("p", {}, letter.message) : "", letter.request === null ? "" : h("pre", { tabindex: 0 }, letter.request)));
    }
    const acts = h("td", {});
    if (this.page.mayAct) {
      acts.append(h("span", { class: "buttons" },
        letter.can_retry ? h("button", { type: "button", class: "small", "aria-label": `Retry ${letter.id}`, onclick: () => this.retry(letter) }, "Retry") : "",
        h("button", { type: "button", class: "small danger", "aria-label": `Delete ${letter.id}`, onclick: () => this.remove(letter) }, "Delete")));
    }
    const node = h("tr", {}, h("td", {}, moment(letter.at_ms)), reason,
      h("td", {}, h("a", { class: "mono", href: `#/jobs/${encodeURIComponent(letter.tenant || "default")}/${encodeURIComponent(letter.id)}` }, letter.id)),
      h("td", {}, h("span", { class: "mono", title: letter.tenant }, letter.whole_tenant || "–")), h("td", { class: "num" }, bytes(letter.num_bytes)), acts);
    return { node, update: () => {} };
  }

  async retry(letter) {
    const done = await this.page.act("retry", letter.entry);
    if (done) {
      announce("Submitted again");
      this.page.go(`#/jobs/${encodeURIComponent(done.tenant)}/${encodeURIComponent(done.id)}`);
    }
  }

  async remove(letter) {
    const answer = await ask("Delete this letter?", `The request of ${letter.id} is gone then, for good.`, [["", "Keep it"], ["yes", "Delete it", "danger"]]);
    if (answer !== "yes") return;
    await this.page.act("delete", letter.entry);
    announce("Deleted");
    this.refresh();
  }
}
