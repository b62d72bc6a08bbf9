// A playground: one talk, kept in this tab. Its answer is a job of the pool, so a reload in the middle
// of it reads on by the job's id.

import * as api from "./api.js";
import { announce, h, setText } from "./dom.js";
import { count, duration } from "./format.js";

const KEPT = "tokenbus.talk";
const RETRY_MS = 700;
const MAX_RETRIES = 40;

// Frames of server-sent events as { id, data }.
async function* framesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    for (let at = rest.indexOf("\n\n"); at >= 0; at = rest.indexOf("\n\n")) {
      const frame = { id: "", data: "" };
      for (const line of rest.slice(0, at).split("\n")) {
        if (line.startsWith("id: ")) frame.id = line.slice(4);
        else if (line.startsWith("data: ")) frame.data += line.slice(6);
      }
      rest = rest.slice(at + 2);
      if (frame.data) yield frame;
    }
  }
}

export class Playground {
  constructor(page) {
    this.page = page;
    this.talk = this.kept();
    this.turns = h("ol", { class: "turns", "aria-label": "Talk" });
    this.model = h("select", { "aria-label": "Model" });
    this.input = h("textarea", { id: "question", "aria-label": "Question", placeholder: "Ask something; Ctrl-Enter sends it" });
    this.tokens = h("input", { type: "text", inputmode: "numeric", size: 5, value: "512", "aria-label": "Most tokens of an answer" });
    this.send = h("button", { type: "submit", class: "primary" }, "Send");
    this.stop = h("button", { type: "button", hidden: true, onclick: () => this.cancel() }, "Stop");
    const form = h("form", { class: "ask" }, this.input, h("div", { class: "row" }, this.model,
      h("label", { class: "muted" }, "tokens ", this.tokens),
      h("span", { class: "end" }, h("button", { type: "button", onclick: () => this.clear() }, "New talk"), this.stop, this.send)));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.begin();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.begin();
      }
    });
    this.node = h("section", { class: "panel talk", "aria-labelledby": "talk-title" },
      h("header", {}, h("h1", { class: "unseen" }, "Playground"), h("h2", { id: "talk-title" }, "Playground"),
        h("span", { class: "muted" }, "Its answers are jobs like any other: they go on while you reload.")),
      this.turns, form);
    this.reading = null;
    this.draw();
  }

  kept() {
    try {
      return JSON.parse(sessionStorage.getItem(KEPT)) ?? { turns: [], job: null };
    } catch {
      return { turns: [], job: null };
    }
  }

  keep() {
    sessionStorage.setItem(KEPT, JSON.stringify(this.talk));
  }

  open() {
    const names = [...new Set(this.page.session.pools.flatMap((pool) => (pool.is_ready ? [...pool.models, pool.name] : [])))];
    if (names.join() !== [...this.model.options].map((option) => option.value).join()) {
      const before = this.talk.model ?? this.model.value;
      this.model.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
      if (names.includes(before)) this.model.value = before;
    }
    if (this.talk.job && !this.reading) this.read(this.talk.job, "");
  }

  close() {}

  clear() {
    if (this.reading) this.cancel();
    this.talk = { turns: [], job: null, model: this.model.value };
    this.keep();
    this.draw();
    this.input.focus();
  }

  draw() {
    this.turns.replaceChildren(...this.talk.turns.map((turn) => {
      const text = h("span", {}, turn.text);
      const reasoning = h("span", { class: "reasoning" }, turn.reasoning ?? "");
      const meta = h("span", { class: "meta" });
      const node = h("li", { data: { role: turn.role } }, reasoning, text, meta);
      this.last = { text, reasoning, meta };
      if (turn.role === "assistant") this.tellOf(turn, meta);
      return node;
    }));
    this.turns.hidden = this.talk.turns.length === 0;
    this.stop.hidden = !this.talk.job;
    this.send.disabled = Boolean(this.talk.job);
  }

  tellOf(turn, meta) {
    const parts = [turn.tokens ? `${count(turn.tokens)} tokens` : "", turn.ttft ? `first after ${duration(turn.ttft)}` : "",
      turn.took && turn.tokens ? `${Math.round((turn.tokens * 1000) / turn.took)} tokens/s` : "", turn.end ?? ""].filter(Boolean);
    meta.replaceChildren(parts.join(" · "));
    if (turn.id) meta.append(parts.length ? " · " : "", h("a", { href: `#/jobs?q=${encodeURIComponent(turn.id)}` }, "its timeline"));
  }

  async begin() {
    const question = this.input.value.trim();
    if (!question || this.talk.job) return;
    this.input.value = "";
    this.talk.model = this.model.value;
    this.talk.turns.push({ role: "user", text: question }, { role: "assistant", text: "" });
    const messages = this.talk.turns.slice(0, -1).filter((turn) => turn.text).map((turn) => ({ role: turn.role, content: turn.text }));
    this.talk.job = "asked";
    this.talk.asked = Date.now();
    this.keep();
    this.draw();
    try {
      const response = await fetch("../v1/chat/completions", {
        method: "POST",
        headers: api.headers({ "Content-Type": "application/json" }),
        body: JSON.stringify({
          model: this.talk.model || undefined, messages, stream: true,
          max_tokens: Number.parseInt(this.tokens.value, 10) || undefined, stream_options: { include_usage: true },
        }),
      });
      if (!response.ok) throw await api.refusal(response);
      this.talk.job = response.headers.get("X-Tokenbus-Job-Id");
      this.talk.turns.at(-1).id = this.talk.job;
      this.keep();
      await this.read(this.talk.job, "", response);
    } catch (error) {
      this.end(error instanceof api.Refused ? error.message : "The gateway did not answer.");
    }
  }

  // Read an answer to its end; where the connection breaks, go on after the last cursor.
  async read(job, cursor, response = null) {
    if (job === "asked") {
      this.end("The page was left before the question was accepted.");
      return;
    }
    const turn = this.talk.turns.at(-1);
    if (!cursor) {
      Object.assign(turn, { text: "", reasoning: "" });
      this.draw();
    }
    this.reading = job;
    let last = cursor;
    for (let tries = 0; tries < MAX_RETRIES && this.reading === job; tries += 1) {
      try {
        const answer = response ?? (await fetch(`../v1/jobs/${job}/stream`, { headers: api.headers(last ? { "Last-Event-ID": last } : {}) }));
        response = null;
        if (!answer.ok) throw await api.refusal(answer);
        for await (const frame of framesOf(answer.body)) {
          if (this.reading !== job) return;
          tries = 0;
          if (frame.data === "[DONE]") {
            this.end("");
            return;
          }
          if (frame.id) last = frame.id;
          if (!this.take(JSON.parse(frame.data), turn)) return;
        }
      } catch (error) {
        if (error instanceof api.Refused) {
          this.end(error.message);
          return;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
    if (this.reading === job) this.end("The gateway does not answer.");
  }

  take(chunk, turn) {
    if (chunk.error) {
      if (chunk.error.code === "gateway_closing") return true;
      this.end(chunk.error.message);
      return false;
    }
    const delta = chunk.choices?.[0]?.delta ?? {};
    if (delta.content || delta.reasoning_content || delta.reasoning) turn.ttft ??= Date.now() - this.talk.asked;
    turn.text += delta.content ?? "";
    turn.reasoning = (turn.reasoning ?? "") + (delta.reasoning_content ?? delta.reasoning ?? "");
    if (chunk.usage) turn.tokens = chunk.usage.completion_tokens;
    setText(this.last.text, turn.text);
    setText(this.last.reasoning, turn.reasoning);
    return true;
  }

  end(told) {
    const turn = this.talk.turns.at(-1);
    turn.end = told;
    if (!told) turn.took = Date.now() - this.talk.asked - (turn.ttft ?? 0);
    this.reading = null;
    this.talk.job = null;
    this.keep();
    this.draw();
    announce(told || "The answer is complete");
  }

  async cancel() {
    const { job } = this.talk;
    if (!job || job === "asked") return;
    this.reading = null;
    try {
      await fetch(`../v1/jobs/${job}/cancel`, { method: "POST", headers: api.headers() });
    } catch {
      // It goes on without a reader for the gateway's grace, and ends then.
    }
    this.end("stopped");
  }
}
