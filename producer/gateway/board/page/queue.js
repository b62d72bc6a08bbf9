// What waits and what runs, by priority and by tenant.

import { h, reconcile, setText } from "./dom.js";
import { count, seconds } from "./format.js";

const PRIORITIES = ["0 · first", "1 · normal", "2 · last"];

class Meter {
  constructor() {
    this.waiting = h("i", { class: "waiting" });
    this.held = h("i", { class: "held" });
    this.node = h("span", { class: "meter", "aria-hidden": "true" }, this.held, this.waiting);
  }

  update(held, waiting, most) {
    const share = (value) => `${most ? Math.max(value ? 1 : 0, (100 * value) / most) : 0}%`;
    this.held.style.setProperty("width", share(held));
    this.waiting.style.setProperty("width", share(waiting));
  }
}

class Row {
  constructor(name) {
    this.meter = new Meter();
    this.cells = ["waiting", "tokens", "held", "oldest"].map(() => h("td", { class: "num" }));
    this.node = h("tr", {}, ...name, h("td", { class: "wide" }, this.meter.node), ...this.cells);
    this.most = 1;
  }

  show(each, tokens) {
    const told = [count(each.waiting_jobs), count(tokens), count(each.held_jobs), each.oldest_age_s === null ? "–" : seconds(each.oldest_age_s)];
    told.forEach((text, number) => setText(this.cells[number], text));
    this.meter.update(each.held_jobs, each.waiting_jobs, this.most);
  }
}

const HEAD = ["Waiting", "Tokens", "Running", "Oldest"];

function table(title, id, names, body) {
  return h("section", { class: "panel", "aria-labelledby": id },
    h("header", {}, h("h2", { id }, title),
      h("span", { class: "legend end" },
        h("span", {}, h("i", { class: "decode", "aria-hidden": "true" }), "running"), h("span", {}, h("i", { class: "queue", "aria-hidden": "true" }), "waiting"))),
    h("div", { class: "scroll" }, h("table", { "aria-labelledby": id },
      h("thead", {}, h("tr", {}, ...names.map((name) => h("th", { scope: "col" }, name)), h("th", { scope: "col" }, h("span", { class: "unseen" }, "Share")),
        ...HEAD.map((name) => h("th", { scope: "col", class: "num" }, name)))),
      body)));
}

export class Queue {
  constructor(page) {
    this.page = page;
    this.priorities = h("tbody");
    this.tenants = h("tbody");
    this.empty = h("p", { class: "empty" }, "No tenant has jobs.");
    this.byTenant = table("Tenants", "tenants-title", ["Tenant", "Priority"], this.tenants);
    this.byTenant.append(this.empty);
    this.node = h("div", { class: "two" }, table("Queue by priority", "queue-title", ["Priority"], this.priorities), this.byTenant);
  }

  update(figures) {
    const sum = (each) => each.waiting_jobs + each.held_jobs;
    this.most = Math.max(1, ...figures.priorities.map(sum));
    reconcile(this.priorities, figures.priorities, (each) => each.priority, (each) => {
      const row = new Row([h("th", { scope: "row" }, PRIORITIES[each.priority] ?? String(each.priority))]);
      row.update = (now) => {
        row.most = this.most;
        row.show(now, now.waiting_tokens);
      };
      return row;
    });
    const lanes = [...figures.lanes].sort((one, other) => sum(other) - sum(one)).slice(0, 40);
    this.mostOfTenants = Math.max(1, ...lanes.map(sum));
    this.empty.hidden = lanes.length > 0;
    reconcile(this.tenants, lanes, (lane) => `${lane.priority}:${lane.tenant}`, (lane) => {
      const row = new Row([
        h("th", { scope: "row" }, h("a", { class: "mono", href: `#/jobs?q=${encodeURIComponent(`tenant:${lane.tenant}`)}` }, lane.tenant)),
        h("td", {}, String(lane.priority)),
      ]);
      row.update = (now) => {
        row.most = this.mostOfTenants;
        row.show(now, now.waiting_tokens);
      };
      return row;
    });
  }
}
