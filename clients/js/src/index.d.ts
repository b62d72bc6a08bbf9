/** Where a gateway is, and how it is asked. */
export interface TokenbusOptions {
  /** Address of the gateway, with or without `/v1`; `http://127.0.0.1:8000` if left out. */
  url?: string | URL;
  /** Key of the gateway, where it asks for one. */
  apiKey?: string;
  /** Headers of every request. */
  headers?: Record<string, string>;
  /** Used in place of the global `fetch`. */
  fetch?: typeof globalThis.fetch;
  /** How long lost connections are made anew, counted from the last sign of life. 60,000 if left out. */
  retryForMs?: number;
}

export interface ChatMessage {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content?: string | null | Array<{ type: "text"; text: string }>;
  tool_calls?: ToolCall[];
  tool_call_id?: string;
  reasoning_content?: string;
  name?: string;
}

export interface ToolCall {
  id: string;
  type: "function";
  function: { name: string; arguments: string };
}

/** Fields of a job; the gateway's page on requests has the others. */
export interface JobRequest {
  model?: string;
  prompt?: string;
  messages?: ChatMessage[];
  tools?: unknown[];
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  seed?: number;
  stop?: string | string[];
  n?: number;
  response_format?: unknown;
  metadata?: Record<string, string>;
  /** Jobs of one key and request are one job; drawn for each call if left out. */
  idempotency_key?: string;
  [field: string]: unknown;
}

/** A job as the gateway tells it; once it has ended, with its answer. */
export interface Job {
  id: string;
  /** Seconds since 1970. */
  created: number;
  status: string;
  model?: string;
  jobs_ahead?: number;
  eta_s?: number | null;
  reason?: Finish["reason"];
  choices?: Array<{ index: number; text: string; message: ChatMessage; finish_reason: string }>;
  usage?: Record<string, unknown>;
  error?: { code: string; message: string; param: string | null };
  [field: string]: unknown;
}

/** What an event adds to the message of its choice. */
export interface Delta {
  content?: string;
  reasoning_content?: string;
  tool_calls?: Array<{
    index: number;
    id?: string;
    type?: "function";
    function?: { name?: string; arguments?: string };
  }>;
}

export interface Usage {
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
  reasoning_tokens?: number;
}

export interface Finish {
  reason: "stop" | "length" | "cancelled" | "expired" | "failed";
  usage: Usage;
  error: { code: string; field: string | null; message: string } | null;
  choices: string[];
  finish_reasons?: string[];
  [field: string]: unknown;
}

/** One token of a choice. */
export interface TokenEvent {
  job: string;
  /** Index of the token, from 1 over all choices: the cursor that resumes behind it. */
  cursor: number;
  choice: number;
  token_id: number;
  /** The text as the model wrote it; `delta` tells what it means. */
  text: string;
  delta: Delta;
  logprobs?: unknown;
  finish?: undefined;
}

/** The end of a job, and what was held back of its choices until then. */
export interface EndEvent {
  job: string;
  cursor: number;
  finish: Finish;
  deltas?: Array<[choice: number, delta: Delta]>;
}

export type JobEvent = TokenEvent | EndEvent;

/** Where a waiting job stands. */
export interface QueuePlace {
  job: string;
  jobs_ahead: number;
}

export interface CallOptions {
  signal?: AbortSignal;
}

export interface StreamOptions extends CallOptions {
  /** Index of the last token that was seen; 0, from the beginning, if left out. */
  cursor?: number;
  /** Hears where the job stands while it waits. */
  onQueued?: (place: QueuePlace) => void;
}

export declare class Tokenbus {
  constructor(options?: TokenbusOptions);
  /**
   * Queue a job. A request that got no answer is sent again: its key makes one job of all tries.
   * @throws {TokenbusError} where the gateway refuses it; `retryAfterMs` says when to come back.
   */
  submit(request: JobRequest, options?: CallOptions): Promise<Job>;
  /** What the server knows of a job. */
  get(id: string, options?: CallOptions): Promise<Job>;
  /** Cancel a job wherever it is; its stream ends within moments. */
  cancel(id: string, options?: CallOptions): Promise<Job>;
  /**
   * The events of a job after a cursor, each token once and in order, the terminal one last. Lost
   * connections are made anew, at the last event that was seen.
   * @throws {ConnectionLost} after `retryForMs` without a sign of life.
   */
  stream(id: string, options?: StreamOptions): AsyncGenerator<JobEvent, void, void>;
  /**
   * The content of a job's answer, piece by piece.
   * @throws {JobEnded} where the job fails, is cancelled or expires.
   */
  content(id: string, options?: StreamOptions): AsyncGenerator<string, void, void>;
}

/** What the gateway refused or failed to do, in its own words. */
export declare class TokenbusError extends Error {
  readonly status: number;
  readonly code: string | null;
  readonly param: string | null;
  readonly retryAfterMs: number | null;
}

/** No connection, or no whole answer, as often as it was tried. */
export declare class ConnectionLost extends TokenbusError {}

/** The job ended without an answer: it failed, was cancelled, or its deadline passed. */
export declare class JobEnded extends TokenbusError {
  readonly reason: string;
}
