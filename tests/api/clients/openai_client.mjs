// The official npm package `openai` against an endpoint: node openai_client.mjs BASE_URL MODEL, prints JSON.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "the fox" }];
const told = {};

told.models = (await client.models.list()).data.map((entry) => entry.id);

const whole = await client.chat.completions.create({ model, messages, max_tokens: 5, temperature: 0 });
told.whole = whole.choices[0].message.content;
told.completionTokens = whole.usage.completion_tokens;

const stream = await client.chat.completions.create({
  model, messages, max_tokens: 5, temperature: 0, stream: true, stream_options: { include_usage: true },
});
told.streamed = "";
told.finishReasons = [];
for await (const chunk of stream) {
  told.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.choices[0]?.finish_reason) told.finishReasons.push(chunk.choices[0].finish_reason);
  if (chunk.usage) told.streamedTokens = chunk.usage.completion_tokens;
}

told.helper = await client.chat.completions
  .stream({ model, messages, max_tokens: 5, temperature: 0 })
  .finalContent();

const plain = await client.completions.create({ model, prompt: "the fox", max_tokens: 3, temperature: 0 });
told.plain = plain.choices[0].text;

const response = await client.responses.create({ model, input: "the fox", max_output_tokens: 5, temperature: 0 });
told.response = response.output_text;

const embedded = await client.embeddings.create({ model, input: ["the fox", "x"] });
told.vectors = embedded.data.map((entry) => entry.embedding.length);

try {
  await client.chat.completions.create({ model: "another", messages });
} catch (error) {
  told.error = { kind: error.constructor.name, status: error.status, code: error.code };
}

// The stream is left in its middle: the endpoint must stop the session.
const left = await client.chat.completions.create({ model, messages, stream: true, logit_bias: { 1: -100 } });
for await (const _ of left) break;

console.log(JSON.stringify(told));
