// The reader of server-sent events takes frames in pieces of any size, as the standard has them.
import assert from "node:assert/strict";
import { test } from "node:test";

import { readEvents } from "../src/sse.js";

const WIRE =
  ": awake\n\nretry: 250\nid: 3\nevent: delta\ndata: {\"text\":\r\ndata: \"é\"}\r\n\r\n" +
  "data:first\rdata: \rdata:  third\r\rid\ndata: {}\n\nevent: cut\ndata: never ended";
const EVENTS = [
  { id: "3", event: "delta", data: '{"text":\n"é"}', retryMs: 250 },
  { id: "3", event: "message", data: "first\n\n third", retryMs: 250 },
  { id: "", event: "message", data: "{}", retryMs: 250 },
];

async function read(pieces) {
  const found = [];
  for await (const event of readEvents(ReadableStream.from(pieces))) found.push(event);
  return found;
}

test("events are the same however their bytes are cut", async () => {
  const bytes = new TextEncoder().encode(WIRE);
  for (const size of [1, 2, 3, 5, 7, 1000]) {
    const pieces = [];
    for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
    assert.deepEqual(await read(pieces), EVENTS, `pieces of ${size}`);
  }
});

test("a reader that stops lets the body go", async () => {
  let cancelled = false;
  const body = new ReadableStream({
    pull: (controller) => controller.enqueue(new TextEncoder().encode("data: x\n\n")),
    cancel: () => {
      cancelled = true;
    },
  });
  for await (const event of readEvents(body)) {
    assert.equal(event.data, "x");
    break;
  }
  assert.ok(cancelled);
});
