// Jobs: a list that the gateway searches, and beside it the story of the one that was chosen.

import * as api from "./api.js";
import { announce, ask, h, reconcile, setAttribute, setText } from "./dom.js";
import { count, duration, moment, plural, seconds } from "./format.js";
import { facts, timeline, track } from "./timeline.js";

const STATES = ["held", "waiting", "delayed", "ending", "ended"];
const NAMES = { held: "running", waiting: "waiting", delayed: "delayed", ending: "ending", ended: "ended" };
const REFRESH_MS = 2000;

class Row {
  constructor(job, view) {
    this.view = view;
    this.badge = h("span", { class: "badge" });
    this.cells = Array.from({ length: 5 }, () => h("td", { class: "num" }));
    this.worker = h("span", { class: "mono" });
    this.link = h("a", { class: "mono", href: view.hrefOf(job), title: job.id }, job.id);
    this.node = h("tr", {}, h("td", {}, this.badge), h("td", {}, this.link),
      h("td", {}, h("span", { class: "mono", title: job.tenant }, job.whole_tenant)), ...this.cells, h("td", {}, this.worker));
    this.node.addEventListener("click", (event) => {
      if (!event.target.closest("a")) this.link.click();
    });
  }

  update(job) {
    const isEnded = job.state === "ended";
    const kind = isEnded ? job.reason : job.state;
    setText(this.badge, isEnded ? job.code || job.reason : NAMES[job.state] ?? job.state);
    if (this.badge.dataset.kind !== kind) this.badge.dataset.kind = kind;
    const told = [
      String(job.priority),
      seconds(job.age_s),
      isEnded && job.ttft_ms !== null ? duration(job.ttft_ms) : "–",
      isEnded ? `${count(job.prompt_tokens)} → ${count(job.output_tokens)}` : `≤ ${count(job.tokens)}`,
      isEnded ? moment(job.ended_ms) : "–",
    ];
    told.forEach((text, number) => setText(this.cells[number], text));
    setText(this.worker, job.worker ?? "");
    const chosen = this.view.isChosen(job);
    setAttribute(this.node, "aria-current", chosen ? "true" : null);
  }
}

export class Jobs {
  constructor(page) {
    this.page = page;
    this.states = new Set();
    this.found = [];
    this.chosen = null;
    this.loading = 0;
    this.input = h("input", {
      type: "search", id: "search", placeholder: "Part of an id, tenant:acme, worker:gpu-1, priority:0, reason:failed",
      "aria-label": "Search jobs", autocomplete: "off", spellcheck: "false",
    });
    this.input.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.search(), 200);
    });
    this.chips = STATES.map((state) => {
      const chip = h("button", { type: "button", class: "small", "aria-pressed": "false", data: { state }, onclick: () => this.toggle(state, chip) }, NAMES[state]);
      return chip;
    });
    this.told = h("span", { class: "muted", role: "status" });
    this.body = h("tbody");
    this.empty = h("p", { class: "empty", hidden: true });
    this.table = h("table", {}, h("caption", { class: "unseen" }, "Jobs of the pool, those that have not ended first"),
      h("thead", {}, h("tr", {}, ...["State", "Job", "Tenant"].map((name) => h("th", { scope: "col" }, name)),
        ...["Priority", "Age", "First token", "Tokens", "Ended"].map((name) => h("th", { scope: "col", class: "num" }, name)),
        h("th", { scope: "col" }, "Worker"))),
      this.body);
    this.side = h("aside", { class: "panel story", "aria-label": "The chosen job", hidden: true, tabindex: -1 });
    this.node = h("div", {}, h("h1", { class: "unseen" }, "Jobs"));
    this.split = h("div", { class: "split" },
      h("section", { class: "panel", "aria-label": "Jobs" },
        h("div", { class: "search" }, this.input, h("div", { class: "chips", role: "group", "aria-label": "States" }, ...this.chips), this.told),
        h("div", { class: "scroll" }, this.table), this.empty),
      this.side);
    this.node.append(this.split);
    this.table.addEventListener("keydown", (event) => this.onKey(event));
  }

  hrefOf(job) {
    return `#/jobs/${encodeURIComponent(job.tenant)}/${encodeURIComponent(job.id)}`;
  }

  isChosen(job) {
    return this.chosen !== null && job.id === this.chosen.id && job.tenant === this.chosen.tenant;
  }

  onKey(event) {
    const row = event.target.closest("tr");
    const to = { ArrowDown: row?.nextSibling, ArrowUp: row?.previousSibling }[event.key];
    if (to) {
      event.preventDefault();
      to.querySelector("a").focus();
    }
  }

  toggle(state, chip) {
    if (!this.states.delete(state)) this.states.add(state);
    chip.setAttribute("aria-pressed", String(this.states.has(state)));
    this.search();
  }

  // Show a place: `rest` is what stands behind #/jobs, `query` what stands behind its question mark.
  open(rest, query) {
    const asked = query.get("q");
    if (asked !== null && asked !== this.input.value) this.input.value = asked;
    const [tenant, id] = rest;
    const before = this.chosen;
    this.chosen = id ? { id, tenant } : null;
    if (this.chosen && !(before && this.isChosen(before))) {
      this.side.replaceChildren(h("p", { class: "empty" }, "Reading …"));
      this.show();
    }
    this.side.hidden = this.chosen === null;
    this.split.toggleAttribute("data-open", this.chosen !== null);
    this.refresh();
    this.timer ??= setInterval(() => this.refresh(), REFRESH_MS);
  }

  close() {
    clearInterval(this.timer);
    this.timer = undefined;
  }

  search() {
    this.refresh();
  }

  async refresh() {
    if (document.hidden || this.loading > 1) return;
    this.loading += 1;
    const asked = this.input.value;
    try {
      const told = await api.jobs(this.page.pool, asked, [...this.states]);
      if (asked !== this.input.value) return;
      this.found = told.jobs;
      setText(this.told, told.is_whole ? plural(told.jobs.length, "job") : `first ${count(told.jobs.length)}; narrow the search for others`);
      this.draw(asked ? "No job is like that. Ended jobs are remembered for a while only." : "No job waits, runs or has ended lately.");
      if (this.chosen) await this.show();
    } catch (error) {
      if (error instanceof api.Refused && error.status === 400) setText(this.told, error.message);
      else this.page.failed(error);
    } finally {
      this.loading -= 1;
    }
  }

  draw(none) {
    reconcile(this.body, this.found, (job) => `${job.tenant}\n${job.id}\n${job.state === "ended"}`, (job) => new Row(job, this));
    this.empty.hidden = this.found.length > 0;
    setText(this.empty, none);
  }

  async show() {
    const { id, tenant } = this.chosen;
    try {
      const job = await api.job(this.page.pool, id, tenant);
      if (!this.chosen || this.chosen.id !== id) return;
      const shown = JSON.stringify([job, job.state === "ended" ? 0 : Math.floor(this.page.now() / 1000)]);
      if (this.side.dataset.shown === shown) return;
      this.side.dataset.shown = shown;
      this.fill(job);
    } catch (error) {
      if (error instanceof api.Refused && error.status === 404) {
        this.side.dataset.shown = "";
        this.side.replaceChildren(h("p", { class: "empty" }, "Nothing is known of this job, or not any more."));
      } else this.page.failed(error);
    }
  }

  fill(job) {
    const badge = h("span", { class: "badge", data: { kind: job.finish?.reason ?? job.state } }, job.finish?.reason ?? NAMES[job.state] ?? job.state);
    const focused = this.side.contains(document.activeElement) ? document.activeElement.id : "";
    const at = this.side.scrollTop;
    const parts = [
      h("header", {}, h("h2", { class: "mono" }, job.id), badge,
        h("button", { type: "button", class: "small end", id: "close-job", onclick: () => this.page.go("#/jobs") }, "Close")),
      h("section", {}, ...(job.is_listed ? track(job, this.page.now()) : []), timeline(job),
        job.is_listed ? "" : h("p", { class: "muted" }, "Its timeline is not remembered any more.")),
      h("section", {}, facts(job)),
    ];
    if (this.page.mayAct && job.state !== "ended") {
      parts.push(h("section", { class: "buttons" }, h("button", { type: "button", class: "danger", id: "cancel-job", onclick: () => this.cancel(job) }, "Cancel this job")));
    }
    if (job.texts) {
      const { request, answers } = job.texts;
      parts.push(h("section", {}, h("h3", {}, "Request"), request === null ? h("p", { class: "muted" }, "It is not kept after the end.") : h("pre", { tabindex: 0 }, request)));
      answers.forEach((answer, number) => parts.push(h("section", {},
        h("h3", {}, answers.length > 1 ? `Answer ${number + 1}` : "Answer"), h("pre", { tabindex: 0 }, answer))));
    } else parts.push(h("section", { class: "muted" }, "Prompts and answers are shown to keys with the role reader."));
    this.side.replaceChildren(...parts.map((part) => part));
    this.side.scrollTop = at;
    if (focused) document.getElementById(focused)?.focus();
  }

  async cancel(job) {
    const answer = await ask("Cancel this job?", `${job.id} of ${job.whole_tenant} ends where it is; its reader keeps what it has.`, [["", "Keep it"], ["yes", "Cancel it", "danger"]]);
    if (answer !== "yes") return;
    await this.page.act("cancel", job.id, job.tenant);
    announce("Job cancelled");
    this.refresh();
  }
}
