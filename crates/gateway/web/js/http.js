// Requests to this gateway: the key where it asks for one, its errors as sentences, and server-sent events.

import { clean } from "./format.js";
import * as key from "./key.js";

/** Most characters of one event: a gateway that sends more is broken. */
const EVENT_LENGTH_MAX = 8 * 1024 * 1024;

/** The code of a key that is good, but not for this. */
export const MISSING_SCOPE = "insufficient_permissions";

/** What the gateway refused, for people. `status` is the HTTP status, 0 when it could not be reached. */
export class RequestError extends Error {
  constructor(message, status, { code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** As `fetch`, but failures are `RequestError`s, and a 401 asks for another key and tries again. */
export async function request(path, options = {}) {
  for (;;) {
    const used = key.current();
    const response = await send(path, options, used);
    if (response.ok) return response;
    const error = await refusal(response);
    if (response.status !== 401) throw error;
    if (used !== null) key.refuse(used, error.message);
    else if (key.current() === null) await key.ask(options.signal);
  }
}

export async function json(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch {
    throw new RequestError(`${path} did not answer in JSON`, response.status);
  }
}

async function send(path, options, used) {
  const headers = { ...options.headers };
  if (used !== null) headers.authorization = `Bearer ${used}`;
  try {
    return await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError("This node cannot be reached. Is it still running?", 0);
  }
}

async function refusal(response) {
  let detail = {};
  try {
    detail = (await response.json())?.error ?? {};
  } catch {
    // An answer without JSON says enough by its status.
  }
  const message = clean(detail.message, 500) || `the gateway answered ${response.status}`;
  const seconds = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  return new RequestError(message, response.status, {
    code: clean(detail.code, 80),
    retryAfter: Number.isFinite(seconds) ? Math.min(Math.max(seconds, 1), 600) : null,
  });
}

/**
 * The `data` of each server-sent event of a response; `null` for a comment (keep-alive).
 * Ends with the stream; throws when it breaks.
 */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      if (rest.length > EVENT_LENGTH_MAX) throw new RequestError("the gateway sent an endless event", response.status);
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith(":")) {
          yield null;
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
