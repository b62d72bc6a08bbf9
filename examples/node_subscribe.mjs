// Ask for an answer from Node without any library, and print it while it grows:
//     REDIS=6379 node examples/node_subscribe.mjs "Two sentences about rain:"
import net from "node:net";
import readline from "node:readline";
import { randomUUID } from "node:crypto";

const server = process.env.REDIS ?? "6379"; // a port, or the path of a socket
const id = `node-${randomUUID()}`;
const request = { v: 2, id, prompt: process.argv[2] ?? "Rain:", max_tokens: 32 };
const connect = () => net.connect(/^\d+$/.test(server) ? Number(server) : server);
const resp = (...words) => [`*${words.length}`, ...words.flatMap((w) => [`$${Buffer.byteLength(w)}`, w]), ""].join("\r\n");

const reading = connect();
reading.write(resp("SUBSCRIBE", `{tb:default:0}:tok:${id}`));
for await (const line of readline.createInterface({ input: reading })) {
  if (line === "subscribe") connect().end(resp("XADD", "{tb:default}:inbox", "*", "job", JSON.stringify(request)));
  const event = line.startsWith('{"v":') ? JSON.parse(line) : { text: "" };
  process.stdout.write(event.finish ? `\n${event.finish.reason} after ${event.to} tokens\n` : event.text);
  if (event.finish) break;
}
reading.destroy();
