// Lines over the last quarter of an hour. A chart is read with the pointer, with the arrow keys, and by
// its label, which says in words what the lines show.

import { h, setAttribute, setText, svg } from "./dom.js";
import { clock } from "./format.js";
import { NUM_STEPS, STEP_MS } from "./series.js";

const HEIGHT = 132;
const TOP = 8;
const BOTTOM = 18;
const LEFT = 46;
const RIGHT = 4;

// The least of 1, 2, 5 × 10ⁿ that is no less than a value.
function roundUp(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((each) => each * power).find((each) => each >= value * 0.999);
}

export class Chart {
  // `lines` are { name, label }, names of samples; `format` writes a value.
  constructor(title, lines, format) {
    this.title = title;
    this.lines = lines;
    this.format = format;
    this.samples = [];
    this.chosen = null;
    this.values = lines.map(() => h("b"));
    this.when = h("span", { class: "muted" });
    this.paths = lines.map((_, number) => svg("path", { class: `line s${number + 1}` }));
    this.area = svg("path", { class: "area s1" });
    this.grid = [0, 0.5, 1].map((share) => ({
      share,
      line: svg("line", { class: "grid" }),
      text: svg("text", { "text-anchor": "end", x: LEFT - 6 }),
    }));
    this.times = [0, 1, 2, 3].map((number) => ({
      share: number / 3,
      text: svg("text", { y: HEIGHT - 4, "text-anchor": number === 0 ? "start" : number === 3 ? "end" : "middle" }),
    }));
    this.cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
    this.svg = svg("svg", { tabindex: 0, role: "img" },
      ...this.grid.flatMap((each) => [each.line, each.text]), ...this.times.map((each) => each.text),
      this.area, ...this.paths, this.cursor);
    this.node = h("figure", { class: "panel chart" },
      h("figcaption", {}, h("h3", {}, title), this.when,
        h("span", { class: "keys" }, ...lines.map((line, number) =>
          h("span", {}, h("i", { class: `k${number + 1}` }), `${line.label} `, this.values[number])))),
      this.svg);
    this.svg.addEventListener("pointermove", (event) => this.choose(this.at(event.offsetX)));
    this.svg.addEventListener("pointerleave", () => this.choose(null));
    this.svg.addEventListener("blur", () => this.choose(null));
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(this.svg);
  }

  get width() {
    return Math.max(160, this.svg.clientWidth || 400);
  }

  x(at) {
    const end = this.samples.length ? this.samples[this.samples.length - 1].at : 0;
    const share = 1 - (end - at) / ((NUM_STEPS - 1) * STEP_MS);
    return LEFT + share * (this.width - LEFT - RIGHT);
  }

  at(x) {
    if (!this.samples.length) return null;
    let best = 0;
    for (let number = 1; number < this.samples.length; number += 1) {
      if (Math.abs(this.x(this.samples[number].at) - x) < Math.abs(this.x(this.samples[best].at) - x)) best = number;
    }
    return best;
  }

  onKey(event) {
    const last = this.samples.length - 1;
    if (last < 0) return;
    const from = this.chosen ?? last;
    const to = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.choose(Math.max(0, Math.min(last, to)));
  }

  choose(number) {
    this.chosen = number;
    this.tell();
  }

  take(samples) {
    this.samples = samples;
    if (this.chosen !== null && this.chosen >= samples.length) this.chosen = null;
    this.draw();
  }

  tell() {
    const { samples } = this;
    const chosen = samples[this.chosen ?? samples.length - 1];
    this.lines.forEach((line, number) => {
      // Where nothing ended in the last step, the last that is known.
      const at = this.chosen === null ? samples.findLast((each) => (each[line.name] ?? null) !== null) : chosen;
      const value = at?.[line.name];
      setText(this.values[number], value === null || value === undefined ? "–" : this.format(value));
    });
    setText(this.when, this.chosen === null || !chosen ? "" : clock(chosen.at));
    setAttribute(this.cursor, "visibility", this.chosen === null ? "hidden" : "visible");
    if (this.chosen !== null && chosen) {
      setAttribute(this.cursor, "x1", this.x(chosen.at).toFixed(1));
      setAttribute(this.cursor, "x2", this.x(chosen.at).toFixed(1));
    }
    const told = this.lines.map((line) => {
      const known = samples.map((each) => each[line.name]).filter((value) => value !== null && value !== undefined);
      const now = known.length ? this.format(known[known.length - 1]) : "not known";
      return `${line.label} now ${now}${known.length ? `, at most ${this.format(Math.max(...known))}` : ""}`;
    });
    setAttribute(this.svg, "aria-label", `${this.title} in the last 15 minutes: ${told.join("; ")}.`);
  }

  draw() {
    const { samples, width } = this;
    setAttribute(this.svg, "viewBox", `0 0 ${width} ${HEIGHT}`);
    let most = 0;
    for (const sample of samples) for (const line of this.lines) most = Math.max(most, sample[line.name] ?? 0);
    const top = roundUp(most);
    const y = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - TOP - BOTTOM);
    for (const { share, line, text } of this.grid) {
      for (const [name, value] of [["x1", LEFT], ["x2", width - RIGHT], ["y1", y(share * top)], ["y2", y(share * top)]]) {
        setAttribute(line, name, value);
      }
      setAttribute(text, "y", (y(share * top) + 3.5).toFixed(1));
      const label = this.format(share * top);
      setText(text, share === 0.5 && [this.format(0), this.format(top)].includes(label) ? "" : label);
    }
    const end = samples.length ? samples[samples.length - 1].at : null;
    for (const { share, text } of this.times) {
      setAttribute(text, "x", (LEFT + share * (width - LEFT - RIGHT)).toFixed(1));
      setText(text, end === null ? "" : clock(end - (1 - share) * (NUM_STEPS - 1) * STEP_MS).slice(0, 5));
    }
    this.lines.forEach((line, number) => {
      const runs = this.runs(line.name, y);
      setAttribute(this.paths[number], "d", runs.map((run) => `M${run.join("L")}`).join(""));
      if (number === 0) {
        setAttribute(this.area, "d", runs.filter((run) => run.length > 1).map((run) => {
          const ground = (HEIGHT - BOTTOM).toFixed(1);
          return `M${run[0].split(" ")[0]} ${ground}L${run.join("L")}L${run[run.length - 1].split(" ")[0]} ${ground}Z`;
        }).join(""));
      }
    });
    this.tell();
  }

  // Points of a line, in runs without a gap. A step in which nothing ended has no latency: its
  // neighbours are joined where they are near.
  runs(name, y) {
    const runs = [];
    let run = [];
    let last = null;
    for (const sample of this.samples) {
      const value = sample[name];
      if (value === null || value === undefined) continue;
      if (last !== null && sample.at - last > 6 * STEP_MS) {
        runs.push(run);
        run = [];
      }
      run.push(`${this.x(sample.at).toFixed(1)} ${y(value).toFixed(1)}`);
      last = sample.at;
    }
    if (run.length) runs.push(run);
    return runs;
  }
}
