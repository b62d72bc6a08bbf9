// The story of one job: what happened to it and when, as a bar and as a list.

import { h } from "./dom.js";
import { NONE, clock, count, duration, moment, plural } from "./format.js";

const WHY = {
  worker: ["Worker lost", "Its lease ran out; another worker goes on after the last logged token."],
  engine: ["Engine died", "Whatever was on board goes back; the search for whose fault it was is the pool's."],
  log: ["Log could not be continued", "Another start may do better."],
  parked: ["Parked", "It made room for a more urgent job."],
  drain: ["Handed back", "Its worker was told to stop."],
  size: ["Handed back", "Once tokenised it needed more pages than had been counted."],
  cleared: ["Cleared of suspicion", "It goes on beside others."],
  preceded: ["Handed back", "Its log already had tokens of an earlier owner."],
  fenced: ["Fenced off", "A later owner has its log."],
  unknown: ["Handed back", "Its worker did not know it any more."],
};
const ENDS = { stop: "Finished", length: "Finished at its length", cancelled: "Cancelled", expired: "Expired", failed: "Failed" };

// Parts of a job's life as [kind, from, to]; kinds are queue, prefill, decode and back.
export function partsOf(job, now) {
  const parts = [];
  let from = job.created_ms || job.stamps.find((stamp) => stamp.at_ms)?.at_ms || now;
  let kind = "queue";
  let known = 0;
  for (const { kind: stamp, at_ms: at, logged } of job.stamps) {
    if (!"pfbe".includes(stamp)) continue;
    // A worker that vanished tells no first token; that tokens are logged does.
    if (stamp === "b" && kind === "prefill" && logged > known) kind = "decode";
    known = Math.max(known, logged);
    if (at > from) parts.push([kind, from, at]);
    from = Math.max(from, at);
    kind = { p: "prefill", f: "decode", b: "back", e: null }[stamp];
  }
  if (kind !== null && !job.ended_ms) {
    // First tokens of a job that still runs are known to its worker alone.
    if (kind === "prefill" && job.num_tokens > 0) kind = "decode";
    if (now > from) parts.push([kind, from, now]);
  }
  return parts;
}

const NAMES = { queue: "waiting", prefill: "prompt", decode: "generating", back: "back in the queue" };

export function track(job, now) {
  const parts = partsOf(job, now);
  const whole = parts.reduce((sum, [, from, to]) => sum + to - from, 0) || 1;
  const totals = {};
  for (const [kind, from, to] of parts) totals[kind] = (totals[kind] ?? 0) + to - from;
  const told = Object.entries(totals).map(([kind, ms]) => `${NAMES[kind]} ${duration(ms)}`).join(", ");
  const node = h("div", { class: "track", role: "img", "aria-label": told || "nothing known" });
  for (const [kind, from, to] of parts) {
    const part = h("i", { class: kind, title: `${NAMES[kind]}: ${duration(to - from)}` });
    part.style.setProperty("width", `${((to - from) / whole) * 100}%`);
    node.append(part);
  }
  const legend = h("p", { class: "legend" }, ...Object.entries(totals).map(([kind, ms]) =>
    h("span", {}, h("i", { class: kind, "aria-hidden": "true" }), `${NAMES[kind]} ${duration(ms)}`)));
  return [node, legend];
}

function rows(job) {
  const found = [];
  if (job.created_ms) found.push(["q", job.created_ms, "Queued", ""]);
  let pulls = 0;
  let logged = 0;
  for (const stamp of job.stamps) {
    switch (stamp.kind) {
      case "p":
        pulls += 1;
        found.push(["p", stamp.at_ms, pulls === 1 ? "Taken" : logged ? "Resumed" : "Taken again", `by ${stamp.worker || "a worker"}${logged ? `, after token ${count(logged)}` : ""}`]);
        break;
      case "a":
        found.push(["a", stamp.at_ms, "Admitted", "The engine has pages for it."]);
        break;
      case "f":
        found.push(["f", stamp.at_ms, logged ? "First token after the resume" : "First token", ""]);
        break;
      case "b": {
        const [name, why] = WHY[stamp.why] ?? ["Back in the queue", ""];
        logged = Math.max(logged, stamp.logged);
        found.push(["b", stamp.at_ms, name, `${why}${stamp.logged ? ` ${plural(stamp.logged, "token")} logged.` : ""}`.trim()]);
        break;
      }
      case "r":
        found.push(["r", stamp.at_ms, "Released", "Its delay has passed."]);
        break;
      case "+":
        found.push(["+", null, "…", "Steps in between were left out."]);
        break;
      case "e":
        found.push(["e", stamp.at_ms, ENDS[job.finish?.reason] ?? "Ended", job.finish?.code ?? ""]);
        break;
      default:
    }
  }
  if (job.state === "held" && job.num_tokens) found.push(["now", null, "Now", `${plural(job.num_tokens, "token")} so far`]);
  return found;
}

export function timeline(job) {
  const first = job.created_ms;
  return h("ol", { class: "stamps", "aria-label": "Timeline" }, ...rows(job).map(([kind, at, name, why]) => {
    const since = at === null ? "" : at === first ? clock(at, true) : `+ ${duration(at - first)}`;
    const isBad = kind === "e" && ["failed", "expired"].includes(job.finish?.reason);
    return h("li", { data: isBad ? { kind, bad: "" } : { kind } },
      at === null ? h("span") : h("time", { datetime: new Date(at).toISOString(), title: moment(at) }, since),
      h("i", { "aria-hidden": "true" }),
      h("span", {}, name, why ? h("span", { class: "why" }, why) : ""));
  }));
}

export function facts(job) {
  const { finish, numbers } = job;
  const told = [
    ["Tenant", h("a", { class: "mono", href: `#/jobs?q=${encodeURIComponent(`tenant:${job.whole_tenant}`)}`, title: job.tenant }, job.whole_tenant)],
    ["Priority", numbers.priority ?? NONE],
    ["Worker", job.worker ? h("span", { class: "mono" }, job.worker) : NONE],
    ["Tokens", finish
      ? `${count(finish.prompt_tokens)} in (${count(finish.cached_tokens)} cached), ${count(finish.output_tokens)} out`
      : `about ${count(numbers.prompt ?? 0)} in, ${count(job.num_tokens)} of at most ${count((numbers.output ?? 0) * (numbers.n ?? 1))} out`],
    job.deadline_ms ? ["Deadline", moment(job.deadline_ms)] : null,
    job.flag ? ["Asked to end", job.flag] : null,
    finish ? ["End", `${finish.reason}${finish.code ? `: ${finish.code}` : ""}`] : null,
    finish?.message ? ["Message", finish.message] : null,
    numbers.attempts ? ["Crashes", numbers.attempts] : null,
  ].filter(Boolean);
  return h("dl", { class: "facts-list" }, ...told.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, typeof value === "number" ? String(value) : value)]));
}
