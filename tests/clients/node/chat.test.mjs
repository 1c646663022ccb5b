// The official `openai` package for Node, unchanged, against the gateway at OPENGRID_URL.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const url = process.env.OPENGRID_URL;
const model = process.env.OPENGRID_MODEL;
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const greedy = { model, messages, temperature: 0, max_tokens: 16 };

test("models are listed", async () => {
  const ids = [];
  for await (const entry of openai.models.list()) ids.push(entry.id);
  assert.ok(ids.includes(model));
});

test("chat answers, and streaming says the same", async () => {
  const whole = await openai.chat.completions.create(greedy);
  assert.equal(whole.choices[0].message.role, "assistant");
  assert.equal(whole.usage.completion_tokens, 16);
  const stream = await openai.chat.completions.create({ ...greedy, stream: true, stream_options: { include_usage: true } });
  let text = "", usage = null, chunks = 0;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
    chunks += 1;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, 16);
  assert.ok(chunks > 10, "tokens stream one by one");
});

test("the stream helper gathers the final message", async () => {
  const runner = openai.chat.completions.stream(greedy);
  const message = await runner.finalMessage();
  assert.equal(message.role, "assistant");
  assert.ok(message.content.length > 0);
  assert.equal((await runner.finalChatCompletion()).choices[0].finish_reason, "length");
});

test("completions answer", async () => {
  const answer = await openai.completions.create({ model, prompt: "The sea is", temperature: 0, max_tokens: 4 });
  assert.equal(answer.object, "text_completion");
  assert.ok(answer.choices[0].text.length > 0);
});

test("errors are the right classes", async () => {
  const unknown = await openai.chat.completions.create({ ...greedy, model: "gpt-nonexistent" }).catch((error) => error);
  assert.ok(unknown instanceof OpenAI.NotFoundError);
  assert.equal(unknown.code, "model_not_found");
  const wrong = await openai.chat.completions.create({ ...greedy, temperature: 9 }).catch((error) => error);
  assert.ok(wrong instanceof OpenAI.BadRequestError);
  assert.equal(wrong.param, "temperature");
  assert.match(wrong.requestID, /^req_/);
});

test("a timeout is one", async () => {
  const long = { ...greedy, max_tokens: 3000, ignore_eos: true };
  const error = await openai.chat.completions.create(long, { timeout: 300 }).catch((caught) => caught);
  assert.ok(error instanceof OpenAI.APIConnectionTimeoutError);
});

test("hanging up ends the answer", async () => {
  const stream = await openai.chat.completions.create({ ...greedy, max_tokens: 3000, ignore_eos: true, stream: true });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted);
  // The gateway has no request left: neither this one nor the one that timed out.
  for (let tries = 0; ; tries += 1) {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    const open = metrics.match(/^opengrid_num_requests_(running|waiting) \d+/gm).map((line) => Number(line.split(" ")[1]));
    if (open.every((count) => count === 0)) break;
    assert.ok(tries < 50, `requests are still open: ${open}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
});
