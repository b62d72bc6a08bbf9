// The past of a pool: a bounded ring of samples, as the gateway tells them (`_sample` of board_figures.py).

export const SAMPLE = ["at", "out", "in", "waiting", "held", "ended", "failed", "ttft50", "ttft95", "queue50", "queue95"];
export const STEP_MS = 5000;
export const NUM_STEPS = 180;

export class Series {
  constructor() {
    this.samples = [];
  }

  get since() {
    return this.samples.length ? this.samples[this.samples.length - 1].at : 0;
  }

  take(rows) {
    for (const row of rows) {
      if (row[0] <= this.since) continue;
      this.samples.push(Object.fromEntries(SAMPLE.map((name, number) => [name, row[number]])));
    }
    if (this.samples.length > NUM_STEPS) this.samples.splice(0, this.samples.length - NUM_STEPS);
    return rows.length > 0;
  }
}
