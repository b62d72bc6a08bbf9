// The AI SDK with its provider for compatible servers: `node sdk_ai.mjs URL`; fails where it is let
// down. AI_SDK names a folder whose node_modules have `ai`, `@ai-sdk/openai-compatible` and `zod`.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.env.AI_SDK}/`);
const load = (name) => import(pathToFileURL(require.resolve(name)));
const { generateObject, generateText, streamText, tool } = await load("ai");
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
