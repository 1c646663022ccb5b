// Tools, structured output and embeddings with the official `openai` package for Node, at the gateways that the
// environment names.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const model = process.env.OPENGRID_MODEL;
const connect = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0, timeout: 60_000 });
const openai = connect(process.env.OPENGRID_URL);
const parameters = {
  type: "object",
  properties: { city: { enum: ["Paris", "Rome"] }, days: { type: "integer", minimum: 1, maximum: 3 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const description = "The weather of a city";
const weather = { type: "function", function: { name: "get_weather", description, parameters, strict: true } };
const question = (city, days) => ({ role: "user", content: `What is the weather in ${city} for ${days} days?` });
const call = (id, given) => ({ id, type: "function", function: { name: "get_weather", arguments: JSON.stringify(given) } });
// After such turns even a small model calls the tool by itself.
const history = [["Rome", 1], ["Paris", 2], ["Rome", 3]].flatMap(([city, days], number) => [
  question(city, days),
  {
    role: "assistant",
    content: null,
    tool_calls: [call(`call_${number}`, { city, days })],
  },
  { role: "tool", tool_call_id: `call_${number}`, content: "sunny" },
]);
const greedy = { model, temperature: 0, max_tokens: 128, tools: [weather] };

function assertGoodCall({ name, arguments: text }) {
  assert.equal(name, "get_weather");
  const { city, days } = JSON.parse(text);
  assert.ok(["Paris", "Rome"].includes(city) && [1, 2, 3].includes(days), text);
}

test("a forced tool is called, and streaming gathers the same call", async () => {
  const named = { type: "function", function: { name: "get_weather" } };
  for (const tool_choice of ["required", named]) {
    const body = { ...greedy, messages: [question("Paris", 2)], tool_choice, parallel_tool_calls: false };
    const whole = (await openai.chat.completions.create(body)).choices[0].message.tool_calls;
    assert.equal(whole.length, 1);
    assertGoodCall(whole[0].function);
    let deltas = 0;
    const runner = openai.chat.completions.stream(body).on("tool_calls.function.arguments.delta", () => (deltas += 1));
    const gathered = (await runner.finalMessage()).tool_calls;
    assert.deepEqual(gathered.map((call) => call.function.arguments), whole.map((call) => call.function.arguments));
    assert.ok(deltas > 3, "arguments stream piece by piece");
  }
});

test("parallel calls are gathered each by itself", async () => {
  const messages = [{ role: "user", content: "What is the weather in Paris and in Rome?" }];
  const runner = openai.chat.completions.stream({ ...greedy, messages, tool_choice: "required", max_tokens: 700 });
  const calls = (await runner.finalMessage()).tool_calls;
  calls.forEach((call) => assertGoodCall(call.function));
  assert.deepEqual([...new Set(calls.map((call) => JSON.parse(call.function.arguments).city))].sort(), ["Paris", "Rome"]);
  assert.equal(new Set(calls.map((call) => call.id)).size, calls.length);
});

test("the tool runner calls the function and sends its result", async () => {
  const called = [];
  const run = ({ city, days }) => {
    called.push({ city, days });
    return "rain, 9 degrees";
  };
  const tool = { ...weather, function: { ...weather.function, function: run, parse: JSON.parse } };
  const runner = openai.chat.completions.runTools(
    { ...greedy, messages: [...history, question("Paris", 2)], tools: [tool], parallel_tool_calls: false },
    { maxChatCompletions: 2 },
  );
  await runner.done();
  assert.deepEqual(called[0], { city: "Paris", days: 2 });
  assert.ok(runner.messages.some((message) => message.role === "tool" && message.content === "rain, 9 degrees"));
  assert.equal(runner.allChatCompletions().length, 2, "an answer came to the result");
});

test("a zod schema comes back parsed, whole and streamed", async () => {
  const age = z.number().int().min(18).max(99);
  const person = z.object({ name: z.string().max(12), age, colour: z.enum(["red", "green"]) });
  const messages = [{ role: "user", content: "Make up a person." }];
  const response_format = zodResponseFormat(person, "person");
  for (const seed of [1, 2, 3]) {
    const body = { model, messages, response_format, temperature: 1, seed, max_tokens: 200 };
    const { parsed } = (await openai.chat.completions.parse(body)).choices[0].message;
    assert.deepEqual(person.parse(parsed), parsed);
    const streamed = await openai.chat.completions.stream(body).finalMessage();
    assert.deepEqual(streamed.parsed, parsed);
  }
  const format = zodTextFormat(person, "person");
  const asked = { model, input: "Make up a person.", max_output_tokens: 200 };
  const response = await openai.responses.parse({ ...asked, text: { format } });
  assert.deepEqual(person.parse(response.output_parsed), response.output_parsed);
});

test("responses stream what they say whole", async () => {
  const body = { model, input: "What is the capital of France?", temperature: 0, max_output_tokens: 16 };
  const whole = await openai.responses.create(body);
  let text = "";
  for await (const event of await openai.responses.create({ ...body, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, whole.output_text);
  assert.equal(whole.usage.output_tokens, 16);
});

test("embeddings are the same as floats and as base64", async () => {
  const embeddings = connect(process.env.OPENGRID_EMBEDDING_URL).embeddings;
  const asked = { model: process.env.OPENGRID_EMBEDDING_MODEL, input: ["The sea is wide.", "The moon is far."] };
  // The package asks for base64 unless told otherwise.
  const [packed, plain] = [await embeddings.create(asked), await embeddings.create({ ...asked, encoding_format: "float" })];
  assert.equal(packed.data.length, 2);
  packed.data.forEach(({ embedding }, index) => {
    assert.equal(embedding.length, 384);
    embedding.forEach((number, at) => assert.ok(Math.abs(number - plain.data[index].embedding[at]) < 1e-6));
  });
});
