// A chat of Vercel's AI SDK that is reloaded in mid-answer, and has the whole answer all the same:
//     npm install ai
//     tokenbus serve smollm2-135m
//     node examples/ai_sdk_chat.mjs "Tell me a story about rain"
//
// `useChat({ resume: true, transport })` of @ai-sdk/react drives the same chat in a page; here two of
// them stand for the page before the reload and after it.
import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

// The package is looked for where the program was started.
const { AbstractChat, DefaultChatTransport } = await import(
  pathToFileURL(createRequire(`${process.cwd()}/`).resolve("ai"))
);
const api = `${process.env.GATEWAY ?? "http://127.0.0.1:8000"}/api/chat`;
const question = process.argv[2] ?? "Tell me a story about rain";

class State {
  status = "ready";
  constructor(messages) {
    this.messages = messages;
  }
  pushMessage = (message) => (this.messages = [...this.messages, message]);
  popMessage = () => (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) => (this.messages = this.messages.with(index, structuredClone(message)));
  snapshot = structuredClone;
}

class Page extends AbstractChat {
  constructor(id, messages) {
    const transport = new DefaultChatTransport({ api, body: { max_tokens: 120 } });
    super({ id, transport, state: new State(messages) });
  }
  get answer() {
    const last = this.messages.at(-1);
    const parts = last?.role === "assistant" ? last.parts : [];
    return parts.map((part) => part.text ?? "").join("");
  }
}

const id = randomUUID();
const page = new Page(id, []);
void page.sendMessage({ text: question });
while (page.answer.length < 40) {
  if (page.error) throw page.error;
  await new Promise((resolve) => setTimeout(resolve, 10));
}
const seen = page.answer;
console.log(`before the reload: ${seen}`);
void page.stop(); // as the browser does: it hangs up, and the answer goes on

const reloaded = new Page(id, page.messages.slice(0, 1)); // what the page has stored: the question
await reloaded.resumeStream(); // useChat does this by itself, with `resume: true`
if (!reloaded.answer.startsWith(seen)) throw new Error(`another answer: ${reloaded.answer}`);
console.log(`after the reload:  ${reloaded.answer}`);
