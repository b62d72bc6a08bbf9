// Writes zod_schemas.json beside it: what zod's toJSONSchema prints for each of its constructors.
//
// Usage: npm install zod@4.6.7 in some folder, then `node zod_schemas.mjs FOLDER`.
// Every function that zod exports is called here, or is listed as one that makes no schema.

import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const folder = path.join(path.resolve(process.argv[2]), "node_modules", "zod");
const z = await import(pathToFileURL(path.join(folder, "index.js")));
const { version } = JSON.parse(fs.readFileSync(path.join(folder, "package.json"), "utf8"));

const NO_CONSTRUCTORS = `_ZodString _default _function check clone compile config decode decodeAsync
  deepPartial encode encodeAsync flattenError formatError fromJSONSchema getDiscriminatedOption
  getErrorMap memoizer parse parseAsync prettifyError registry safeDecode safeDecodeAsync safeEncode
  safeEncodeAsync safeParse safeParseAsync setErrorMap toJSONSchema toZod treeifyError validate
  validateAsync withParser`.split(/\s+/);
const person = () => z.object({ name: z.string(), age: z.int().optional() });
// Constructors that take no argument.
const PLAIN = `any base64 base64url bigint boolean cidrv4 cidrv6 creditCard cuid cuid2 currencyCode
  custom date e164 email emoji file float32 float64 function guid hex hostname httpUrl iban int int32
  int64 ipv4 ipv6 json jwt ksuid mac nan nanoid never null number string stringbool symbol uint32
  uint64 ulid undefined unknown url uuid uuidv4 uuidv6 uuidv7 void xid`.split(/\s+/);
// Checks of a text, of a number, and of what has a size, with their arguments.
const OF_TEXTS = {
  endsWith: ["z"], includes: ["m"], length: [3], lowercase: [], maxLength: [5], minLength: [2],
  normalize: [], regex: [/^[a-z]+$/], slugify: [], startsWith: ["a.b"], toLowerCase: [],
  toUpperCase: [], trim: [], uppercase: [], describe: ["a text"], meta: [{ title: "T" }],
  overwrite: [(text) => text], refine: [() => true], superRefine: [() => {}],
};
const OF_NUMBERS = {
  gt: [1], gte: [1], lt: [9], lte: [9], multipleOf: [0.5], negative: [], nonnegative: [],
  nonpositive: [], positive: [],
};
const OTHERS = {
  array: () => z.array(z.string()),
  catch: () => z.catch(z.string(), "x"),
  codec: () => z.codec(z.iso.datetime(), z.date(), { decode: (t) => new Date(t), encode: String }),
  discriminatedUnion: () =>
    z.discriminatedUnion("kind", [
      z.object({ kind: z.literal("a"), x: z.int() }),
      z.object({ kind: z.literal("b"), y: z.string() }),
    ]),
  enum: () => z.enum(["a", "b"]),
  exactOptional: () => z.object({ a: z.exactOptional(z.string()) }),
  hash: () => z.hash("sha256"),
  instanceof: () => z.instanceof(Date),
  intersection: () => z.intersection(person(), z.object({ b: z.int() })),
  invertCodec: () =>
    z.invertCodec(z.codec(z.string(), z.number(), { decode: Number, encode: String })),
  keyof: () => z.keyof(person()),
  lazy: () => z.lazy(() => z.string()),
  literal: () => z.literal(["a", 1, true, null]),
  looseObject: () => z.looseObject({ a: z.string() }),
  looseRecord: () => z.looseRecord(z.string().regex(/^a/), z.string()),
  map: () => z.map(z.string(), z.int()),
  maxSize: () => z.set(z.string()).check(z.maxSize(3)),
  mime: () => z.file().check(z.mime(["image/png"])),
  minSize: () => z.set(z.string()).check(z.minSize(1)),
  nativeEnum: () => z.nativeEnum({ A: 1, B: "x" }),
  nonoptional: () => z.nonoptional(z.string().optional()),
  nullable: () => z.nullable(z.string()),
  nullish: () => z.nullish(z.string()),
  object: person,
  optional: () => z.optional(z.string()),
  output: () => z.output(z.string()),
  input: () => z.input(z.string()),
  partialRecord: () => z.partialRecord(z.enum(["a", "b"]), z.string()),
  pipe: () => z.pipe(z.string(), z.string()),
  prefault: () => z.prefault(z.string(), "x"),
  preprocess: () => z.preprocess((value) => value, z.string()),
  promise: () => z.promise(z.string()),
  properties: () => person().check(z.properties({ name: z.string() })),
  property: () => person().check(z.property("name", z.string())),
  readonly: () => z.readonly(person()),
  record: () => z.record(z.string(), z.number()),
  set: () => z.set(z.string()),
  size: () => z.set(z.string()).check(z.size(2)),
  strictObject: () => z.strictObject({ a: z.string() }),
  stringFormat: () => z.stringFormat("of-ours", /^[a-c]+$/),
  success: () => z.success(z.string()),
  templateLiteral: () => z.templateLiteral(["a-", z.number(), "-", z.enum(["x", "y"])]),
  transform: () => z.transform((value) => value),
  tuple: () => z.tuple([z.string(), z.number()]),
  union: () => z.union([z.string(), z.number()]),
  xor: () => z.xor([z.string(), z.number()]),
};
// The same constructors with other options, and what methods alone make.
const MORE = {
  "iso.date": () => z.iso.date(),
  "iso.time": () => z.iso.time(),
  "iso.datetime": () => z.iso.datetime(),
  "iso.datetime, offset": () => z.iso.datetime({ offset: true }),
  "iso.datetime, local": () => z.iso.datetime({ local: true }),
  "iso.datetime, precision": () => z.iso.datetime({ precision: 3 }),
  "iso.duration": () => z.iso.duration(),
  ...Object.fromEntries(
    ["bigint", "boolean", "date", "number", "string"].map((n) => [`coerce.${n}`, () => z.coerce[n]()]),
  ),
  "email, html5": () => z.email({ pattern: z.regexes.html5Email }),
  "email, rfc5322": () => z.email({ pattern: z.regexes.rfc5322Email }),
  "email, unicode": () => z.email({ pattern: z.regexes.unicodeEmail }),
  "array, bounds": () => z.array(z.int()).min(1).max(3),
  "array, length": () => z.array(person()).length(2),
  "tuple, rest": () => z.tuple([z.string()], z.number()),
  "record, enum": () => z.record(z.enum(["a", "b"]), z.string()),
  "record, literal": () => z.record(z.literal("k"), z.int()),
  "string, bounds": () => z.string().min(2).max(5),
  "string, default": () => z.string().default("x"),
  "string, brand": () => z.string().brand("B"),
  "number, step": () => z.number().step(5),
  "number, safe": () => z.number().safe(),
  "int, multiple": () => z.int().multipleOf(3),
  "object, catchall": () => person().catchall(z.number()),
  "object, partial": () => person().partial(),
  "object, required": () => person().required(),
  "object, pick": () => person().pick({ name: true }),
  "object, omit": () => person().omit({ age: true }),
  "object, extend": () => person().extend({ b: z.int() }),
  "object, of itself": () => {
    const Tree = z.object({ value: z.int(), get next() { return z.union([Tree, z.null()]); } });
    return Tree;
  },
};

const makers = { ...OTHERS, ...MORE };
for (const name of PLAIN) makers[name] = () => z[name]();
for (const [name, given] of Object.entries(OF_TEXTS)) {
  makers[name] = () => z.string().check(z[name](...given));
}
for (const [name, given] of Object.entries(OF_NUMBERS)) {
  makers[name] = () => z.number().check(z[name](...given));
}
const exported = Object.keys(z).filter((name) => /^[a-z_]/.test(name) && typeof z[name] === "function");
const missed = exported.filter((name) => !(name in makers) && !NO_CONSTRUCTORS.includes(name));
if (missed.length) throw new Error(`constructors without a call: ${missed.join(", ")}`);

const schemas = {};
const none = {};
for (const [name, make] of Object.entries(makers).sort(([a], [b]) => (a < b ? -1 : 1))) {
  for (const io of ["output", "input"]) {
    for (const target of ["draft-2020-12", "draft-7"]) {
      try {
        const printed = z.toJSONSchema(make(), { io, target });
        const known = (schemas[name] ??= []);
        const text = JSON.stringify(printed);
        if (!known.some((one) => JSON.stringify(one) === text)) known.push(printed);
      } catch (error) {
        none[`${name}, ${io}`] = String(error.message).split("\n")[0];
      }
    }
  }
}
const lines = (object) =>
  Object.entries(object).map(([name, value]) => `    ${JSON.stringify(name)}: ${JSON.stringify(value)}`);
const text = [
  "{", `  "zod": ${JSON.stringify(version)},`,
  '  "schemas": {', lines(schemas).join(",\n"), "  },",
  '  "none": {', lines(none).join(",\n"), "  }", "}", "",
].join("\n");
fs.writeFileSync(new URL("zod_schemas.json", import.meta.url), text);
console.log(`${Object.keys(schemas).length} with a schema, ${Object.keys(none).length} calls without one`);
