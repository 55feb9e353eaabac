// OpenAI's client for JavaScript against a gateway: what applications do, and how they see errors. Needs OPENAI_BASE_URL.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

const client = new OpenAI({ apiKey: "any", maxRetries: 0, timeout: 60_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Name three birds of the sea shore." }];
const chat = (more) => client.chat.completions.create({ model, messages, max_tokens: 40, temperature: 0, ...more });

/** The error that `promise` is rejected with. */
async function refused(promise, kind) {
  const error = await promise.then(() => assert.fail("it was answered"), (error) => error);
  assert.ok(error instanceof kind, `${error}`);
  return error;
}

test("one model, and it can be retrieved", async () => {
  assert.equal((await client.models.retrieve(model)).id, model);
});

test("a whole answer with usage", async () => {
  const answer = await chat();
  assert.equal(answer.choices[0].message.role, "assistant");
  assert.ok(answer.choices[0].message.content);
  assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
});

test("a stream says what the whole answer says", async () => {
  const whole = await chat();
  const chunks = [];
  for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) chunks.push(chunk);
  const choices = chunks.flatMap((chunk) => chunk.choices);
  assert.equal(choices.map((choice) => choice.delta.content ?? "").join(""), whole.choices[0].message.content);
  assert.equal(choices.at(-1).finish_reason, whole.choices[0].finish_reason);
  assert.deepEqual(chunks.at(-1).usage, whole.usage);
});

test("the helper for streams puts the answer together", async () => {
  const stream = client.chat.completions.stream({ model, messages, max_tokens: 16, temperature: 0 });
  const text = await stream.finalContent();
  assert.equal(text, (await chat({ max_tokens: 16 })).choices[0].message.content);
});

test("a stream can be left", async () => {
  const stream = await chat({ stream: true, max_tokens: 500, ignore_eos: true });
  for await (const _ of stream) break;
  assert.ok((await chat({ max_tokens: 4 })).choices.length);
});

test("stop ends the answer and is not part of it", async () => {
  const whole = (await chat()).choices[0].message.content;
  const word = whole.split(/\s+/)[4];
  const { message, finish_reason } = (await chat({ stop: [word] })).choices[0];
  assert.deepEqual([message.content, finish_reason], [whole.slice(0, whole.indexOf(word)), "stop"]);
});

test("logprobs", async () => {
  const answer = await chat({ logprobs: true, top_logprobs: 3, max_tokens: 5 });
  assert.equal(answer.choices[0].logprobs.content.length, 5);
  for (const token of answer.choices[0].logprobs.content) {
    assert.equal(token.top_logprobs.length, 3);
    assert.equal(token.top_logprobs[0].token, token.token);
  }
});

test("several answers, the same again with the same seed", async () => {
  const ask = async () => {
    const { choices } = await chat({ n: 3, temperature: 1, seed: 1, max_tokens: 16 });
    assert.deepEqual(choices.map((choice) => choice.index), [0, 1, 2]);
    return choices.map((choice) => choice.message.content);
  };
  const first = await ask();
  assert.ok(new Set(first).size > 1);
  assert.deepEqual(await ask(), first);
});

test("text goes on", async () => {
  const answer = await client.completions.create({ model, prompt: "The sea is", max_tokens: 8, temperature: 0 });
  assert.ok(answer.choices[0].text);
  assert.equal(answer.usage.completion_tokens, 8);
});

test("errors have the client's types, and say which parameter", async () => {
  assert.equal((await refused(chat({ model: "no-such-model" }), OpenAI.NotFoundError)).code, "model_not_found");
  for (const [param, value] of [["temperature", 9], ["n", 99], ["response_format", { type: "json_object" }]]) {
    assert.equal((await refused(chat({ [param]: value }), OpenAI.BadRequestError)).param, param);
  }
  const long = [{ role: "user", content: "word ".repeat(20_000) }];
  assert.equal((await refused(chat({ messages: long }), OpenAI.BadRequestError)).code, "context_length_exceeded");
});

test("embeddings are refused, by the path", async () => {
  const error = await refused(client.embeddings.create({ model, input: "gulls" }), OpenAI.NotFoundError);
  assert.match(error.message, /\/v1\/embeddings/);
});
