// A client of a tokenbus gateway: submit jobs, stream their answers across lost connections, cancel.

import { ConnectionLost, JobEnded, TokenbusError, errorOf } from "./errors.js";
import { readEvents } from "./sse.js";

export { ConnectionLost, JobEnded, TokenbusError };

const FIRST_PAUSE_MS = 200;
const MAX_PAUSE_MS = 5_000;
const STEADY_MS = 1_000;
// What may be over in a moment: the gateway restarts, its queue is away, a proxy has lost it.
const PASSING = new Set([408, 425, 429, 500, 502, 503, 504]);
const FINISHED = new Set(["stop", "length"]);

export class Tokenbus {
  #url;
  #headers;
  #fetch;
  #retryForMs;

  /** @param {import("./index.js").TokenbusOptions} [options] */
  constructor({ url = "http://127.0.0.1:8000", apiKey, headers = {}, fetch, retryForMs = 60_000 } = {}) {
    this.#url = String(url).replace(/\/+$/, "").replace(/\/v1$/, "");
    this.#headers = { ...headers };
    if (apiKey) this.#headers.Authorization = `Bearer ${apiKey}`;
    // Looked up at each call where none is given: tests and polyfills replace it.
    this.#fetch = fetch ?? ((...given) => globalThis.fetch(...given));
    this.#retryForMs = retryForMs;
  }

  /**
   * Queue a job. A request that got no answer is sent again: its key makes one job of all tries.
   */
  async submit(request, { signal } = {}) {
    const keyed = { idempotency_key: crypto.randomUUID(), ...request };
    return this.#json("POST", "/v1/jobs", keyed, signal);
  }

  /** What the server knows of a job. */
  async get(id, { signal } = {}) {
    return this.#json("GET", path(id), undefined, signal);
  }

  /** Cancel a job wherever it is; its stream ends within moments. */
  async cancel(id, { signal } = {}) {
    return this.#json("POST", `${path(id)}/cancel`, undefined, signal);
  }

  /**
   * The events of a job after a cursor, each token once and in order, the terminal one last. Lost
   * connections are made anew, at the last event that was seen.
   */
  async *stream(id, { cursor = 0, signal, onQueued } = {}) {
    let last = cursor;
    let pauseMs = FIRST_PAUSE_MS;
    let serverPauseMs = null;
    let failingSince = null;
    for (;;) {
      let problem = null;
      const openedAt = Date.now();
      try {
        const response = await this.#open(id, last, signal);
        for await (const frame of readEvents(response.body)) {
          failingSince = null;
          pauseMs = FIRST_PAUSE_MS;
          serverPauseMs = frame.retryMs ?? serverPauseMs;
          const told = parsed(frame.data);
          if (told === null) continue;
          if (told.error) throw toldError(told.error);
          if (frame.event === "position") {
            onQueued?.(told);
          } else if (told.finish) {
            yield told;
            return;
          } else if (told.cursor > last) {
            last = told.cursor;
            yield told;
          }
        }
      } catch (error) {
        if (signal?.aborted || !isPassing(error)) throw error;
        problem = error;
      }
      const now = Date.now();
      // One that lasted was no failure: a job that waits for long sends comments alone.
      if (now - openedAt > STEADY_MS) failingSince = null;
      failingSince ??= now;
      if (now - failingSince > this.#retryForMs) throw lost(id, problem);
      await pause(serverPauseMs ?? problem?.retryAfterMs ?? pauseMs, signal);
      pauseMs = Math.min(2 * pauseMs, MAX_PAUSE_MS);
    }
  }

  /**
   * The content of a job's answer, piece by piece.
   *
   * Raises JobEnded where the job fails, is cancelled or expires.
   */
  async *content(id, options = {}) {
    for await (const event of this.stream(id, options)) {
      // What was held back until the end has the deltas of all choices.
      const deltas = event.finish ? (event.deltas ?? []) : [[event.choice, event.delta ?? {}]];
      for (const [choice, delta] of deltas) if (choice === 0 && delta.content) yield delta.content;
      const { finish } = event;
      if (finish && !FINISHED.has(finish.reason)) {
        const { code = null, message = `the job was ${finish.reason}`, field = null } = finish.error ?? {};
        throw new JobEnded(message, { reason: finish.reason, code, param: field });
      }
    }
  }

  async #open(id, last, signal) {
    const headers = { ...this.#headers, Accept: "text/event-stream" };
    if (last > 0) headers["Last-Event-ID"] = String(last);
    const response = await this.#sent(`${path(id)}/stream`, { headers, signal });
    if (!response.ok) throw await errorOf(response);
    return response;
  }

  async #json(method, where, body, signal) {
    const headers = { ...this.#headers };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const sent = body === undefined ? undefined : JSON.stringify(body);
    const beganAt = Date.now();
    for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(2 * pauseMs, MAX_PAUSE_MS)) {
      try {
        const response = await this.#sent(where, { method, headers, body: sent, signal });
        if (response.ok) return await response.json();
        throw await errorOf(response);
      } catch (error) {
        // What was refused for now is the caller's to decide; what got no answer is sent again.
        const isOver = !(error instanceof ConnectionLost) || Date.now() - beganAt > this.#retryForMs;
        if (signal?.aborted || isOver) throw error;
      }
      await pause(pauseMs, signal);
    }
  }

  async #sent(where, init) {
    try {
      return await this.#fetch(`${this.#url}${where}`, init);
    } catch (error) {
      if (init.signal?.aborted) throw error;
      throw new ConnectionLost(`no answer from ${this.#url}`, { cause: error });
    }
  }
}

function path(id) {
  return `/v1/jobs/${encodeURIComponent(id)}`;
}

function parsed(data) {
  try {
    const told = JSON.parse(data);
    return typeof told === "object" ? told : null;
  } catch {
    return null; // [DONE], and words of later versions
  }
}

/** Errors of fetch and of bodies that break off are TypeErrors, or what undici makes of them. */
function isPassing(error) {
  if (error instanceof TokenbusError) return error instanceof ConnectionLost || PASSING.has(error.status);
  return error instanceof TypeError || error?.name === "NetworkError" || error?.code !== undefined;
}

/** An error inside a stream has no status; its kind says whether another try may help. */
function toldError(error) {
  return new TokenbusError(error.message, { ...error, status: error.type === "overloaded_error" ? 503 : 0 });
}

function lost(id, cause) {
  return new ConnectionLost(`the stream of job ${id} broke off and could not be resumed`, { cause });
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, ms);
    function done() {
      signal?.removeEventListener("abort", stop);
      resolve();
    }
    function stop() {
      clearTimeout(timer);
      reject(signal.reason);
    }
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
