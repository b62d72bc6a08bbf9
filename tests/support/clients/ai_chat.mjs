// The chat of the AI SDK, as `useChat` drives it, without React: `node ai_chat.mjs STEP URL CHAT …`.
// AI_SDK names a folder whose node_modules have the package `ai`. Prints one line of JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.AI_SDK}/`);
const { AbstractChat, DefaultChatTransport } = await import(pathToFileURL(require.resolve("ai")));

class State {
  status = "ready";
  error = undefined;
  constructor(messages) {
    this.messages = messages;
  }
  pushMessage = (message) => (this.messages = [...this.messages, message]);
  popMessage = () => (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) => (this.messages = this.messages.with(index, structuredClone(message)));
  snapshot = (value) => structuredClone(value);
}

class Chat extends AbstractChat {
  constructor({ messages = [], ...rest }) {
    super({ ...rest, state: new State(messages) });
  }
}

const [step, url, id, ...rest] = process.argv.slice(2);
const body = JSON.parse(rest[0] ?? "{}");
const seen = { fetched: [], finish: null };

function chat(messages) {
  return new Chat({
    id,
    messages,
    transport: new DefaultChatTransport({
      api: `${url}/api/chat`,
      body,
      fetch: async (...given) => {
        const response = await fetch(...given);
        seen.fetched.push([response.status, response.headers.get("x-vercel-ai-ui-message-stream")]);
        return response;
      },
    }),
    onFinish: ({ finishReason, isAbort, isDisconnect, isError }) =>
      (seen.finish = { finishReason, isAbort, isDisconnect, isError }),
  });
}

/** Text of the last message as far as it came. */
function text(of) {
  return of.messages.at(-1).parts.filter((part) => part.type === "text").map((part) => part.text).join("");
}

async function until(condition) {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

function told(of, more = {}) {
  const last = of.messages.at(-1);
  const parts = last.parts.map(({ type, state, text: said, input }) => ({ type, state, text: said, input }));
  const problem = of.error?.message ?? null;
  console.log(JSON.stringify({ status: of.status, role: last.role, id: last.id, parts, problem, ...seen, ...more }));
}

const question = body.question ?? "rain";
delete body.question;
if (step === "ask") {
  const page = chat([]);
  await page.sendMessage({ text: question });
  told(page);
} else if (step === "reload") {
  // The page is left in mid-answer; the next one has what the first had when it asked.
  const page = chat([]);
  void page.sendMessage({ text: question });
  await until(() => page.messages.length > 1 && text(page).length > 20);
  const before = text(page);
  void page.stop();
  const next = chat(page.messages.slice(0, 1));
  await next.resumeStream();
  told(next, { before, text: text(next) });
} else if (step === "resume") {
  const page = chat([{ id: "1", role: "user", parts: [{ type: "text", text: question }] }]);
  await page.resumeStream();
  told(page);
} else if (step === "stop") {
  const page = chat([]);
  const answering = page.sendMessage({ text: question });
  await until(() => page.messages.length > 1 && text(page).length > 20);
  const response = await fetch(`${url}/api/chat/${encodeURIComponent(id)}/stop`, { method: "POST" });
  const stopped = await response.json();
  await answering;
  told(page, { stopped, text: text(page) });
}
