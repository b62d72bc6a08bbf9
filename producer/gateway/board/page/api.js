// Calls of the gateway. The key of the session stays in this tab; nothing goes anywhere else.

const KEY = "tokenbus.key";
const TIMEOUT_MS = 10000;

export class Refused extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function keep(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

export function headers(more = {}) {
  return key() ? { Authorization: `Bearer ${key()}`, ...more } : more;
}

export async function refusal(response) {
  try {
    const { error } = await response.json();
    return new Refused(response.status, error.code, error.message);
  } catch {
    return new Refused(response.status, null, `The gateway answered ${response.status}.`);
  }
}

async function call(path, options = {}) {
  const response = await fetch(`api/${path}`, {
    cache: "no-store",
    signal: AbortSignal.timeout(TIMEOUT_MS),
    ...options,
    headers: headers(options.headers),
  });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

const at = (pool) => `pools/${encodeURIComponent(pool)}`;

export const session = () => call("session");
export const figures = (pool, since) => call(`${at(pool)}?since_ms=${since}`);
export const letters = (pool) => call(`${at(pool)}/letters`);

export function jobs(pool, search, states) {
  const asked = new URLSearchParams({ q: search, state: states.join(",") });
  return call(`${at(pool)}/jobs?${asked}`);
}

export function job(pool, id, tenant) {
  return call(`${at(pool)}/jobs/${encodeURIComponent(id)}?${new URLSearchParams({ tenant })}`);
}

export function act(pool, name, target = "", tenant = "") {
  return call(`${at(pool)}/acts`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ act: name, target, tenant }),
  });
}
