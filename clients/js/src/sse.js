// Server-sent events of a response body: frames as the standard reads them, in pieces of any size.

/**
 * Read the events of a stream of bytes; one that its end has cut is dropped, as browsers do.
 *
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<{ id: string | null, event: string, data: string, retryMs: number | null }>}
 */
export async function* readEvents(body) {
  const lines = readLines(body);
  let id = null;
  let event = "";
  let retryMs = null;
  let data = [];
  for await (const line of lines) {
    if (line === "") {
      if (data.length > 0) yield { id, event: event || "message", data: data.join("\n"), retryMs };
      event = "";
      data = [];
      continue;
    }
    const colon = line.indexOf(":");
    if (colon === 0) continue; // a comment, which keeps proxies awake
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (name === "data") data.push(value);
    else if (name === "event") event = value;
    else if (name === "id" && !value.includes("\0")) id = value;
    else if (name === "retry" && /^\d+$/.test(value)) retryMs = Number(value);
  }
}

/** Lines end with CR, LF or both, and a piece may end between the two. */
async function* readLines(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let skipsLineFeed = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      let text = decoder.decode(value, { stream: true });
      if (text === "") continue;
      if (skipsLineFeed && text[0] === "\n") text = text.slice(1);
      skipsLineFeed = text.endsWith("\r");
      const lines = (rest + text).split(/\r\n|\n|\r/);
      rest = lines.pop() ?? "";
      yield* lines;
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
