// What the official `openai` package for Node makes of refusals, at nodes whose engine is fake: one is slow and has one
// slot, one asks for keys.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const model = process.env.OPENGRID_MODEL;
const hello = { model, messages: [{ role: "user", content: "Hello" }], max_tokens: 2 };
const endless = { ...hello, max_tokens: 4000, ignore_eos: true };
const defaults = { apiKey: "unused", maxRetries: 0, timeout: 60_000 };
const connect = (url, options) => new OpenAI({ baseURL: `${url}/v1`, ...defaults, ...options });
const slow = (options) => connect(process.env.OPENGRID_SLOW_URL, options);
const closed = (options) => connect(process.env.OPENGRID_CLOSED_URL, options);

// A `fetch` that notes the status of every answer and may do something when one is refused.
const noting = (seen, refused = () => {}) => async (...request) => {
  const response = await fetch(...request);
  seen.push(response.status);
  if (!response.ok) refused(response);
  return response;
};

test("errors about keys and sizes are the right classes", async () => {
  const create = (openai, body = hello) => openai.chat.completions.create(body).catch((error) => error);
  const unknown = await create(closed());
  assert.ok(unknown instanceof OpenAI.AuthenticationError);
  assert.equal(unknown.code, "invalid_api_key");
  const forbidden = await create(closed({ apiKey: process.env.OPENGRID_READ_KEY }));
  assert.ok(forbidden instanceof OpenAI.PermissionDeniedError);
  const small = closed({ apiKey: process.env.OPENGRID_SMALL_KEY, maxRetries: 3 });
  const tooMuch = await create(small, { ...hello, max_tokens: 501 });
  assert.ok(tooMuch instanceof OpenAI.RateLimitError);
  assert.equal(tooMuch.headers.get("x-should-retry"), "false");
  const large = await create(slow(), { ...hello, messages: [{ role: "user", content: "x".repeat(9 << 20) }] });
  assert.ok(large instanceof OpenAI.APIError);
  assert.equal(large.status, 413);
});

test("the client waits for the limit of its key", async () => {
  const seen = [];
  const options = { apiKey: process.env.OPENGRID_MINUTE_KEY, fetch: noting(seen) };
  const hasty = closed(options);
  const refused = await (async () => {
    for (let tries = 0; tries < 200; tries += 1) await hasty.models.list();
  })().catch((error) => error);
  assert.ok(refused instanceof OpenAI.RateLimitError);
  seen.length = 0;
  const answer = await closed({ ...options, maxRetries: 3 }).chat.completions.create(hello);
  assert.equal(answer.usage.completion_tokens, 2);
  assert.deepEqual(seen, [429, 200], "it comes back once, and not too early");
});

test("the client retries until the grid has room", async () => {
  const running = await slow().chat.completions.create({ ...endless, stream: true });
  const chunks = running[Symbol.asyncIterator]();
  await chunks.next();
  const seen = [];
  const openai = slow({ maxRetries: 4, fetch: noting(seen, () => running.controller.abort()) });
  const answer = await openai.chat.completions.create(hello);
  assert.equal(answer.usage.completion_tokens, 2);
  assert.equal(seen[0], 503);
  assert.equal(seen.at(-1), 200);
});

test("what a timeout ends is not computed on", async () => {
  const error = await slow({ timeout: 1000 }).chat.completions.create(endless).catch((caught) => caught);
  assert.ok(error instanceof OpenAI.APIConnectionTimeoutError);
  for (let tries = 0; ; tries += 1) {
    const status = await (await fetch(`${process.env.OPENGRID_SLOW_URL}/grid/v1/status`)).json();
    if (status.sessions_running === 0) break;
    assert.ok(tries < 50, "the worker goes on");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
});
