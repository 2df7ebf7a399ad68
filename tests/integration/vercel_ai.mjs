// Vercel's `ai` with `@ai-sdk/openai-compatible`, as applications use them. Prints what came as one line of JSON.
// node vercel_ai.mjs URL MODEL, in the directory of node_modules.
import { createRequire } from 'node:module';

const require = createRequire(`${process.cwd()}/`);
const { generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } = require('ai');
const { createOpenAICompatible } = require('@ai-sdk/openai-compatible');
const { z } = require('zod');

const [url, name] = process.argv.slice(2);
const provider = createOpenAICompatible({
  name: 'tuili',
  baseURL: `${url}/v1`,
  apiKey: 'none',
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const common = { model: provider(name), temperature: 0, maxRetries: 0, maxOutputTokens: 96 };
const river = z.object({ name: z.string().max(20), length: z.enum(['short', 'long']) });
const said = { prompt: 'Name a river, and say whether it is short or long.' };
const weather = tool({
  description: 'The weather in a unit',
  inputSchema: z.object({ unit: z.enum(['celsius', 'kelvin']) }),
  execute: async ({ unit }) => `4 ${unit}`,
});

async function text() {
  const whole = await generateText({ ...common, ...said });
  const stream = streamText({ ...common, ...said });
  let streamed = '';
  for await (const delta of stream.textStream) streamed += delta;
  return {
    whole: whole.text,
    streamed,
    reasons: [whole.finishReason, await stream.finishReason],
    tokens: [whole.usage.outputTokens, (await stream.usage).outputTokens],
  };
}

async function object() {
  const whole = await generateObject({ ...common, ...said, schema: river });
  const stream = streamObject({ ...common, ...said, schema: river });
  let parts = 0;
  for await (const _ of stream.partialObjectStream) parts += 1;
  const output = await generateText({ ...common, ...said, output: Output.object({ schema: river }) });
  return { whole: whole.object, streamed: await stream.object, parts, output: output.output };
}

async function tools() {
  const asked = {
    ...common,
    prompt: 'What is the weather in Oslo?',
    tools: { weather },
    toolChoice: 'required',
    stopWhen: stepCountIs(2),
  };
  const whole = await generateText(asked);
  const stream = streamText(asked);
  const streamed = [];
  for await (const part of stream.fullStream) if (part.type === 'tool-call') streamed.push(part.input);
  return {
    whole: whole.steps.flatMap((step) => step.toolCalls.map((call) => call.input)),
    results: whole.steps.flatMap((step) => step.toolResults.map((result) => result.output)),
    streamed,
    reasons: whole.steps.map((step) => step.finishReason),
  };
}

async function failure() {
  try {
    await generateText({ ...common, model: provider('nobody'), prompt: 'x' });
  } catch (error) {
    return { status: error.statusCode, message: error.message };
  }
  return {};
}

console.log(JSON.stringify({ text: await text(), object: await object(), tools: await tools(), failure: await failure() }));
