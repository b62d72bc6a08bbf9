// The first view: what needs a look, the figures, their past, the fleet and the queue.

import { Chart } from "./charts.js";
import { h, reconcile, setAttribute, setText } from "./dom.js";
import { Fleet } from "./fleet.js";
import { count, duration, plural, rate, seconds } from "./format.js";
import { Queue } from "./queue.js";

const LEVELS = { bad: "Act now", warning: "Warning", note: "Note" };

class Conditions {
  constructor() {
    this.list = h("ul", { class: "conditions" });
    this.well = h("p", { class: "all-well", hidden: true }, "Nothing has to be done now.");
    this.node = h("section", { "aria-label": "What needs a look" }, this.well, this.list);
  }

  update(conditions) {
    this.well.hidden = conditions.some((each) => each.level !== "note");
    reconcile(this.list, conditions, (each) => `${each.code}:${each.told.replace(/[\d.,]+/g, "")}`, () => {
      const level = h("b");
      const told = h("span");
      const cure = h("span", { class: "cure" });
      const link = h("a", {}, "What to do");
      const node = h("li", {}, level, h("span", {}, told, " ", cure, " ", link));
      return {
        node,
        update: (each) => {
          if (node.dataset.level !== each.level) node.dataset.level = each.level;
          setText(level, LEVELS[each.level] ?? each.level);
          setText(told, each.told);
          setText(cure, each.cure);
          if (node.dataset.code !== each.code) node.dataset.code = each.code;
          setAttribute(link, "href", `incidents.html#${each.code}`);
        },
      };
    });
  }
}

class Tile {
  constructor(label) {
    this.value = h("span");
    this.unit = h("small");
    this.sub = h("dd", { class: "sub" });
    this.node = h("dl", { class: "tile" }, h("dt", {}, label), h("dd", { class: "big" }, this.value, this.unit), this.sub);
  }

  show(value, unit = "", sub = "", level = "") {
    const parted = unit === null ? value.match(/^([\d.,–]+)\s*(\S*)$/) : null;
    setText(this.value, parted ? parted[1] : value);
    setText(this.unit, parted ? parted[2] : unit ?? "");
    setText(this.sub, sub);
    this.node.toggleAttribute("data-long", !parted && value.length > 7);
    if ((this.node.dataset.level ?? "") !== level) this.node.dataset.level = level;
  }
}

export class Overview {
  constructor(page) {
    this.conditions = new Conditions();
    this.tiles = Object.fromEntries([
      ["waiting", "Waiting"], ["backlog", "Backlog"], ["running", "Running"], ["out", "Tokens out"],
      ["in", "Tokens in"], ["ttft", "First token"], ["queue", "In queue"], ["itl", "Between tokens"], ["ended", "Ended"],
    ].map(([name, label]) => [name, new Tile(label)]));
    this.charts = [
      new Chart("Tokens per second", [{ name: "out", label: "out" }, { name: "in", label: "in" }], rate),
      new Chart("Jobs", [{ name: "waiting", label: "waiting" }, { name: "held", label: "running" }], count),
      new Chart("Time to first token", [{ name: "ttft50", label: "p50" }, { name: "ttft95", label: "p95" }, { name: "queue50", label: "queue p50" }], duration),
    ];
    this.fleet = new Fleet(page);
    this.queue = new Queue(page);
    this.node = h("div", { class: "stack" },
      h("h1", { class: "unseen" }, "Overview"),
      this.conditions.node,
      h("section", { class: "tiles", "aria-label": "Figures of now" }, ...Object.values(this.tiles).map((tile) => tile.node)),
      h("section", { class: "charts", "aria-label": "The last 15 minutes" }, ...this.charts.map((chart) => chart.node)),
      this.fleet.node, this.queue.node);
    this.drawn = null;
  }

  update(figures, series) {
    this.conditions.update(figures.conditions);
    this.showTiles(figures);
    if (this.drawn !== series.since) {
      this.drawn = series.since;
      for (const chart of this.charts) chart.take(series.samples);
    }
    this.fleet.update(figures);
    this.queue.update(figures);
  }

  showTiles(figures) {
    const { tiles } = this;
    const is = (code) => figures.conditions.find((each) => each.code === code)?.level ?? "";
    tiles.waiting.show(count(figures.waiting_jobs), figures.waiting_jobs === 1 ? "job" : "jobs",
      figures.waiting_jobs ? `${count(figures.waiting_tokens)} tokens` : "nothing waits");
    tiles.backlog.show(seconds(figures.backlog_s), null,
      figures.oldest_age_s ? `oldest ${seconds(figures.oldest_age_s)}` : "of work that waits", is("backlog"));
    const ready = figures.workers.filter((worker) => worker.phase === "ready").length;
    tiles.running.show(count(figures.held_jobs), figures.held_jobs === 1 ? "job" : "jobs",
      `at ${plural(ready, "ready worker")}`, is("no_worker"));
    tiles.out.show(rate(figures.generated_per_s), "/s",
      figures.drain_tokens_per_s ? `drains ${rate(figures.drain_tokens_per_s)}/s` : "");
    tiles.in.show(rate(figures.prompt_per_s), "/s", "of prompts");
    const { ended } = figures;
    const span = ended ? `of ${plural(ended.num_jobs, "job")} in ${Math.round(ended.seconds)} s` : "not readable";
    for (const [tile, name] of [["ttft", "ttft"], ["queue", "queue"], ["itl", "itl"]]) {
      const told = ended?.latencies[name];
      tiles[tile].show(told ? duration(told[0]) : "–", null, told ? `p95 ${duration(told[1])}` : span);
    }
    const failed = ended?.reasons.failed ?? 0;
    const others = ended ? [failed ? `${count(failed)} failed` : "", ended.num_resumed ? `${count(ended.num_resumed)} resumed` : "",
      ended.reasons.cancelled ? `${count(ended.reasons.cancelled)} cancelled` : ""].filter(Boolean).join(", ") : "not readable";
    tiles.ended.show(ended ? count(ended.num_jobs) : "–", ended ? `in ${Math.round(ended.seconds)} s` : "", others || "none failed", is("failures"));
  }
}
