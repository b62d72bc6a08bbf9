// The AI SDK with its providers for compatible servers and for OpenAI: `node sdk_ai.mjs URL`; fails
// where it is let down. AI_SDK names a folder whose node_modules have `ai`, both providers and `zod`.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.AI_SDK}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { generateObject, generateText, stepCountIs, streamText, tool } = await load("ai");
const { createOpenAI } = await load("@ai-sdk/openai");
const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
const { z } = await load("zod");

const provider = createOpenAICompatible({
  name: "tokenbus",
  baseURL: process.argv[2],
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider("smollm2-135m");
const asked = { model, prompt: "Two sentences about rain:", temperature: 0, maxOutputTokens: 24 };

const whole = await generateText(asked);
assert.ok(whole.text);
const streamed = streamText(asked);
let text = "";
for await (const piece of streamed.textStream) text += piece;
assert.equal(text, whole.text);
assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens);

const stock = tool({
  description: "How many of a product are left",
  inputSchema: z.object({ product: z.enum(["lamp", "tent"]) }),
});
const called = streamText({ ...asked, maxOutputTokens: 64, tools: { stock }, toolChoice: "required" });
await called.consumeStream();
const calls = await called.toolCalls;
assert.equal(calls[0].toolName, "stock");
assert.ok(["lamp", "tent"].includes(calls[0].input.product));

const { object } = await generateObject({
  ...asked,
  maxOutputTokens: 96,
  schema: z.object({ name: z.string(), price: z.number().int() }),
});
assert.equal(typeof object.price, "number");

// OpenAI's own provider asks for responses, and sends the ids of what was answered before.
const bodies = [];
const own = createOpenAI({
  baseURL: process.argv[2],
  apiKey: "none",
  fetch: (url, options) => (bodies.push(JSON.parse(options.body)), fetch(url, options)),
})("smollm2-135m");
const drawn = { model: own, temperature: 0 };
const said = [{ role: "user", content: asked.prompt }];
const first = await generateText({ ...drawn, messages: said, maxOutputTokens: 24 });
said.push(...first.response.messages, { role: "user", content: "And snow?" });
const second = streamText({ ...drawn, messages: said, maxOutputTokens: 24 });
await second.consumeStream();
assert.ok(await second.text);
// Drawn by chance a call may be followed by another, which is cut.
const steps = await generateText({
  ...drawn,
  prompt: "How many lamps are left?",
  tools: { stock: tool({ inputSchema: stock.inputSchema, execute: () => 3 }) },
  toolChoice: "required",
  stopWhen: stepCountIs(2),
  maxOutputTokens: 64,
});
assert.equal(steps.steps.length, 2);
const sent = bodies.map(({ input }) => input.map(({ role, type }) => type ?? role));
assert.deepEqual(sent[1], ["user", "item_reference", "user"]);
assert.deepEqual(sent[3].slice(0, 1), ["user"]);
assert.ok(sent[3].includes("function_call_output"));
