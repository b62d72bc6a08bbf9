// The client against a server that breaks off, is away, refuses, and forgets what it has sent.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { afterEach, test } from "node:test";

import { ConnectionLost, JobEnded, Tokenbus, TokenbusError } from "../src/index.js";

const TOKENS = ["It ", "rains ", "on ", "the ", "roofs", "."];
const open = [];

afterEach(() => {
  for (const server of open.splice(0)) {
    server.closeAllConnections();
    server.close();
  }
});

/** Serve with a function of (request, response, number of the request); give a client of it. */
async function served(answer, options = {}) {
  let number = 0;
  const server = createServer((request, response) => answer(request, response, number++));
  open.push(server);
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${server.address().port}`;
  return new Tokenbus({ url, apiKey: "a key", retryForMs: 5_000, ...options });
}

function event(index) {
  if (index > TOKENS.length) {
    return { job: "j", cursor: index, finish: { reason: "length", usage: {}, error: null, choices: ["length"] } };
  }
  const text = TOKENS[index - 1];
  return { job: "j", cursor: index, choice: 0, token_id: index, text, delta: { content: text } };
}

function frame(told) {
  return `id: ${told.cursor}\nevent: ${told.finish ? "end" : "delta"}\ndata: ${JSON.stringify(told)}\n\n`;
}

function refuse(response, status, error, headers = {}) {
  response.writeHead(status, { "Content-Type": "application/json", ...headers });
  response.end(JSON.stringify({ error }));
}

async function gathered(stream) {
  const found = [];
  for await (const each of stream) found.push(each);
  return found;
}

test("a stream that breaks at every token has each once and in order", async () => {
  const seen = [];
  const bus = await served((request, response) => {
    const cursor = Number(request.headers["last-event-id"] ?? 0);
    seen.push(cursor);
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write(`retry: 1\n\n: waiting\n\n`);
    // One event that the client has seen, one that it has not, and the connection is gone.
    if (cursor > 0) response.write(frame(event(cursor)));
    response.write(frame(event(cursor + 1)), () => {
      if (cursor < TOKENS.length) response.destroy();
      else response.end();
    });
  });
  const events = await gathered(bus.stream("j"));
  assert.deepEqual(events.map((each) => each.cursor), [1, 2, 3, 4, 5, 6, 7]);
  assert.equal(events.map((each) => each.text ?? "").join(""), TOKENS.join(""));
  assert.equal(events.at(-1).finish.reason, "length");
  assert.deepEqual(seen, [0, 1, 2, 3, 4, 5, 6]);
});

test("a stream goes on from a cursor, over a gateway that restarts", async () => {
  const bus = await served((request, response, number) => {
    assert.equal(request.headers["last-event-id"], "4");
    assert.equal(request.headers.authorization, "Bearer a key");
    if (number < 2) return refuse(response, 503, { message: "starting" }, { "Retry-After": "0" });
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    const place = 'id: 0\nevent: position\ndata: {"job":"j","jobs_ahead":3}\n\n';
    const end = { ...event(7), deltas: [[0, { content: "!" }], [1, { content: "no" }]] };
    const other = { ...event(6), cursor: 6, choice: 1 };
    response.write(place + frame(event(5)) + frame(other) + frame(end));
  });
  const places = [];
  const pieces = await gathered(bus.content("j", { cursor: 4, onQueued: (each) => places.push(each) }));
  assert.deepEqual(pieces, ["roofs", "!"]);
  assert.deepEqual(places, [{ job: "j", jobs_ahead: 3 }]);
});

test("a gateway that closes is left for the next one", async () => {
  const bus = await served((_, response, number) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    const error = { message: "closing", type: "overloaded_error", param: null, code: "gateway_closing" };
    if (number === 0) response.end(`${frame(event(1))}event: error\ndata: ${JSON.stringify({ error })}\n\n`);
    else if (number === 1) response.end(TOKENS.slice(1).map((_, at) => frame(event(at + 2))).join("") + frame(event(7)));
  });
  assert.deepEqual(await gathered(bus.content("j")), TOKENS);
});

test("what is refused for good is told once, with status, code and field", async () => {
  let asked = 0;
  const bus = await served((_, response) => {
    asked += 1;
    refuse(response, 404, { message: "no such job", code: "not_found", param: "id" });
  });
  for (const call of [() => gathered(bus.stream("x")), () => bus.get("x"), () => bus.cancel("x")]) {
    await assert.rejects(call, { name: "TokenbusError", status: 404, code: "not_found", param: "id" });
  }
  assert.equal(asked, 3);
});

test("a full queue says when to come back", async () => {
  const bus = await served((_, response) =>
    refuse(response, 429, { message: "full", code: "queue_full" }, { "Retry-After": "7" }),
  );
  await assert.rejects(bus.submit({ prompt: "rain" }), { status: 429, retryAfterMs: 7000 });
});

test("a submit that got no answer is sent again with the same key", async () => {
  const keys = [];
  const bus = await served(async (request, response, number) => {
    let body = "";
    for await (const piece of request) body += piece;
    keys.push(JSON.parse(body).idempotency_key);
    if (number === 0) return response.destroy();
    response.writeHead(202, { "Content-Type": "application/json" });
    response.end(JSON.stringify({ id: "j" }));
  });
  assert.deepEqual(await bus.submit({ prompt: "rain" }), { id: "j" });
  assert.equal(keys.length, 2);
  assert.ok(keys[0]);
  assert.equal(keys[0], keys[1]);
  await bus.submit({ prompt: "rain", idempotency_key: "mine" });
  assert.equal(keys[2], "mine");
});

test("a job that failed raises with its reason; its events tell", async () => {
  const failed = { ...event(7), finish: { reason: "failed", error: { code: "too_long", message: "too long", field: "prompt" } } };
  const bus = await served((_, response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.end(frame(event(1)) + frame(failed));
  });
  const call = gathered(bus.content("j"));
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof JobEnded && error instanceof TokenbusError);
    assert.deepEqual([error.reason, error.code, error.param, error.message], ["failed", "too_long", "prompt", "too long"]);
    return true;
  });
  assert.equal((await gathered(bus.stream("j"))).length, 2);
});

test("a server that stays away ends the stream after the time that was given", async () => {
  const bus = new Tokenbus({ url: "http://127.0.0.1:1/v1/", retryForMs: 300 });
  await assert.rejects(gathered(bus.stream("j")), ConnectionLost);
  await assert.rejects(bus.submit({ prompt: "rain" }), ConnectionLost);
});

test("an abort ends a stream at once, in a pause too", async () => {
  const stop = new AbortController();
  const bus = await served((_, response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.end(`retry: 60000\n\n${frame(event(1))}`, () => setTimeout(() => stop.abort(), 20));
  });
  await assert.rejects(gathered(bus.stream("j", { signal: stop.signal })), { name: "AbortError" });
});
