// Errors: one class for each decision that a caller can take.

/** What the gateway refused or failed to do, in its own words. */
export class TokenbusError extends Error {
  /**
   * @param {string} message
   * @param {{ status?: number, code?: string | null, param?: string | null, retryAfterMs?: number | null, cause?: unknown }} [told]
   */
  constructor(message, { status = 0, code = null, param = null, retryAfterMs = null, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = new.target.name;
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfterMs = retryAfterMs;
  }
}

/** No connection, or no whole answer, as often as it was tried. */
export class ConnectionLost extends TokenbusError {}

/** The job ended without an answer: it failed, was cancelled, or its deadline passed. */
export class JobEnded extends TokenbusError {
  /**
   * @param {string} message
   * @param {{ reason: string, code?: string | null, param?: string | null }} told
   */
  constructor(message, { reason, code = null, param = null }) {
    super(message, { code, param });
    this.reason = reason;
  }
}

/**
 * @param {Response} response
 * @returns {Promise<TokenbusError>}
 */
export async function errorOf(response) {
  const text = await response.text().catch(() => "");
  let told = {};
  try {
    told = JSON.parse(text).error ?? {};
  } catch {
    // A proxy answered in its own words.
  }
  const seconds = Number(response.headers.get("retry-after") ?? Number.NaN);
  return new TokenbusError(told.message ?? (text.slice(0, 300) || `HTTP ${response.status}`), {
    status: response.status,
    code: told.code ?? null,
    param: told.param ?? null,
    retryAfterMs: Number.isFinite(seconds) ? seconds * 1000 : null,
  });
}
