// The fleet: a bus for each worker, a seat for each page of its KV cache, or for as many as fit a window.

import { h, reconcile, setAttribute, setText, svg } from "./dom.js";
import { count, percent, plural, rate, seconds } from "./format.js";

const COLUMNS = 24;
const ROWS = 3;
const SEAT = 7;
const STEP = 9;
// A bus that was lost stands here for so long.
const SHOWN_S = 120;
const STATES = ["held", "shared", "cached", "free"];
export const MEANINGS = {
  held: "held by one running job",
  shared: "shared by several",
  cached: "kept for prompts that begin alike",
  free: "empty",
};
const PHASES = {
  ready: "ready", starting: "starting", draining: "draining", down: "no engine", drained: "drained", lost: "lost",
};

// How many seats each state has: by largest remainder, and one at least where there is any page of it.
export function seatsOf(pages, most = COLUMNS * ROWS) {
  const total = STATES.reduce((sum, state) => sum + pages[state], 0);
  if (total <= most) return STATES.map((state) => pages[state]);
  const exact = STATES.map((state) => (pages[state] * most) / total);
  const seats = exact.map((value, number) => (pages[STATES[number]] ? Math.max(1, Math.floor(value)) : 0));
  const order = [0, 1, 2, 3].sort((one, other) => (exact[other] % 1) - (exact[one] % 1));
  for (let left = most - seats.reduce((sum, each) => sum + each, 0), at = 0; left !== 0; at += 1) {
    const number = order[at % 4];
    const change = Math.sign(left);
    if (pages[STATES[number]] && seats[number] + change >= 1) {
      seats[number] += change;
      left -= change;
    }
    if (at > 400) break;
  }
  return seats;
}

function seatPath(first, number) {
  let path = "";
  for (let at = first; at < first + number; at += 1) {
    // Column by column, from the back of the bus to its front.
    const x = 9 + Math.floor(at / ROWS) * STEP;
    const y = 14 + (at % ROWS) * STEP;
    path += `M${x} ${y}h${SEAT}v${SEAT}h-${SEAT}z`;
  }
  return path;
}

class Bus {
  constructor(worker, page) {
    this.page = page;
    this.name = worker.name;
    this.title = h("b", { class: "mono", title: worker.name }, worker.name);
    this.badge = h("span", { class: "badge" });
    this.button = h("button", { type: "button", class: "small", hidden: true, onclick: () => page.drain(this.name, !this.isDrained) });
    this.seats = Object.fromEntries(STATES.map((state) => [state, svg("path", { class: `seat-${state}` })]));
    this.picture = svg("svg", { viewBox: "0 0 250 58", role: "img" },
      svg("rect", { class: "coach", x: 3, y: 7, width: 243, height: 40, rx: 7 }),
      svg("path", { class: "roof", d: "M10 7h229a7 7 0 0 1 6.6 4.6H3.4A7 7 0 0 1 10 7z" }),
      svg("path", { class: "windscreen", d: "M230 14h11a4 4 0 0 1 4 4v14h-15z" }),
      ...STATES.map((state) => this.seats[state]),
      svg("circle", { class: "wheel", cx: 48, cy: 48, r: 6.5 }), svg("circle", { class: "wheel", cx: 198, cy: 48, r: 6.5 }),
      svg("circle", { class: "lamp", cx: 240, cy: 41, r: 3.2 }));
    this.facts = h("p", { class: "facts" });
    this.told = h("p", { class: "muted" });
    this.node = h("li", {}, h("div", { class: "name" }, this.title, this.badge, this.button), this.picture, this.facts, this.told);
    this.shown = "";
    this.factsShown = "";
  }

  update(worker) {
    this.isDrained = worker.drained_for_s !== null && worker.drained_for_s !== undefined;
    const phase = this.isDrained && worker.phase === "ready" ? "drained" : worker.phase;
    if (this.node.dataset.phase !== phase) this.node.dataset.phase = phase;
    setText(this.badge, PHASES[phase] ?? phase);
    if (this.badge.dataset.kind !== phase) this.badge.dataset.kind = phase;
    this.button.hidden = !this.page.mayAct || !["ready", "drained"].includes(phase);
    setText(this.button, this.isDrained ? "Undrain" : "Drain");
    setAttribute(this.button, "aria-label", `${this.isDrained ? "Undrain" : "Drain"} ${this.name}`);
    this.seat(worker);
    const facts = [
      [plural(worker.held_jobs, "job"), ""],
      worker.running === null || worker.running === undefined ? null : [count(worker.running), "running"],
      worker.generated_per_s === null || worker.generated_per_s === undefined ? null : [rate(worker.generated_per_s), "tok/s"],
      worker.model ? [worker.model, ""] : null,
      worker.version ? [worker.version, ""] : null,
      worker.uptime_s ? [`up ${seconds(worker.uptime_s)}`, ""] : null,
    ].filter(Boolean);
    const text = facts.map((each) => each.join(" ")).join("|");
    if (text !== this.factsShown) {
      this.factsShown = text;
      this.facts.replaceChildren(...facts.map(([value, unit]) => h("span", {}, h("b", {}, value), unit ? ` ${unit}` : "")));
    }
    const told = phase === "starting" && worker.percent ? `${worker.told} ${worker.percent} %` : worker.told;
    setText(this.told, told ?? "");
  }

  seat(worker) {
    const { pages } = worker;
    const shown = pages ? STATES.map((state) => pages[state]).join() : "none";
    if (shown === this.shown) return;
    this.shown = shown;
    const seats = pages ? seatsOf(pages) : [0, 0, 0, 0];
    let first = 0;
    STATES.forEach((state, number) => {
      setAttribute(this.seats[state], "d", seatPath(first, seats[number]));
      first += seats[number];
    });
    const total = pages ? STATES.reduce((sum, state) => sum + pages[state], 0) : 0;
    const label = pages
      ? `${this.name}: ${plural(total, "page")}, ${STATES.map((state) => `${count(pages[state])} ${state}`).join(", ")}`
      : `${this.name}: pages not known`;
    setAttribute(this.picture, "aria-label", label);
  }
}

export class Fleet {
  constructor(page) {
    this.page = page;
    this.list = h("ul", { class: "fleet" });
    this.total = h("span", { class: "muted" });
    this.empty = h("p", { class: "empty", hidden: true }, "No worker lives. Jobs that come wait for one.");
    this.node = h("section", { class: "panel", "aria-labelledby": "fleet-title" },
      h("header", {}, h("h2", { id: "fleet-title" }, "Fleet"), this.total,
        h("span", { class: "legend end" }, ...STATES.map((state) =>
          h("span", { title: `Pages ${MEANINGS[state]}` }, h("i", { class: state, "aria-hidden": "true" }), state)))),
      this.empty, this.list);
  }

  update(figures) {
    const lost = figures.lost.filter((each) => each.held_jobs || each.lost_for_s < SHOWN_S).map((each) => ({
      ...each, phase: "lost", pages: null,
      told: each.held_jobs ? "Its lease has run out; others take its jobs over." : "Its jobs went back to the queue.",
    }));
    const workers = [...lost, ...figures.workers];
    this.empty.hidden = workers.length > 0;
    const { pages } = figures;
    const total = pages ? STATES.reduce((sum, state) => sum + pages[state], 0) : 0;
    const used = pages ? pages.held + pages.shared : 0;
    setText(this.total, `${plural(figures.workers.length, "worker")}${total ? ` · ${count(total)} pages, ${percent(used, total)} taken` : ""}`);
    reconcile(this.list, workers, (worker) => worker.name, (worker) => new Bus(worker, this.page));
  }
}
