// From a conversation to a request of /v1/chat/completions, and from its chunks to a turn.

import { pathTo } from "./tree.js";

/** What a conversation may be told beyond its turns; null and empty leave it to the server. */
export const DEFAULT_SETTINGS = Object.freeze({
  model: null,
  system: "",
  temperature: null,
  top_p: null,
  top_k: null,
  min_p: null,
  max_tokens: null,
  seed: null,
  stop: "",
  form: "text",
  schema: "",
  tools: "",
  tool_choice: "auto",
});

const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];

/** Tools as people write them: the list of a request, or bare functions. */
export function readTools(text) {
  const value = JSON.parse(text);
  const list = Array.isArray(value) ? value : [value];
  return list.map((each) => (each.function ? each : { type: "function", function: each }));
}

/**
 * The body of the request that answers into a turn.
 *
 * @param {object} turn a turn of the assistant's
 * @param {boolean} options.continues the turn has text already, which the answer goes on with
 * @throws {SyntaxError} schema or tools are no JSON
 */
export function requestBody(conversation, turn, { alternatives, continues }) {
  const { settings } = conversation;
  const turns = pathTo(conversation, turn);
  const body = {
    messages: messages(settings, continues ? turns : turns.slice(0, -1)),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (settings.model) body.model = settings.model;
  for (const name of NUMBERS) if (settings[name] !== null) body[name] = settings[name];
  const stops = settings.stop.split("\n").filter(Boolean);
  if (stops.length > 0) body.stop = stops;
  if (alternatives !== null) Object.assign(body, { logprobs: true, top_logprobs: alternatives });
  if (continues) {
    // The rest of an answer has no form of its own, and calls no tool from its middle on.
    return Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  }
  if (settings.form === "json") body.response_format = { type: "json_object" };
  if (settings.form === "schema" && settings.schema.trim()) {
    const schema = JSON.parse(settings.schema);
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (settings.tools.trim()) {
    Object.assign(body, { tools: readTools(settings.tools), tool_choice: settings.tool_choice });
  }
  return body;
}

function messages(settings, turns) {
  const list = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  for (const turn of turns) {
    if (turn.role === "tool") list.push({ role: "tool", tool_call_id: turn.callId, content: turn.content });
    else if (turn.role === "assistant" && turn.calls?.length) list.push(withCalls(turn));
    else list.push({ role: turn.role, content: turn.content });
  }
  return list;
}

function withCalls(turn) {
  const calls = turn.calls.map(({ id, name, args }) => ({ id, type: "function", function: { name, arguments: args } }));
  return { role: "assistant", content: turn.content || null, tool_calls: calls };
}

export function emptyAnswer(model) {
  return { role: "assistant", content: "", reasoning: "", calls: [], tokens: [], model, usage: null, timing: null };
}

/** Adds what a chunk of the stream says to a turn. */
export function addChunk(turn, chunk) {
  if (chunk.model) turn.model = chunk.model;
  if (chunk.usage) turn.usage = addedUsage(turn.earlier, chunk.usage);
  for (const choice of chunk.choices) {
    const { delta } = choice;
    turn.content += delta.content ?? "";
    turn.reasoning += delta.reasoning_content ?? "";
    for (const part of delta.tool_calls ?? []) addCall(turn, part);
    for (const token of choice.logprobs?.content ?? []) turn.tokens.push(keptToken(token));
    if (choice.finish_reason) turn.finish = choice.finish_reason;
  }
}

function addCall(turn, part) {
  turn.calls[part.index] ??= { id: "", name: "", args: "" };
  const call = turn.calls[part.index];
  call.id = part.id ?? call.id;
  call.name = part.function.name ?? call.name;
  call.args += part.function.arguments ?? "";
}

/** A token in few bytes: text, log-probability, alternatives; its bytes only where they are no whole characters. */
function keptToken(token) {
  const kept = { t: token.token, p: token.logprob, a: token.top_logprobs.map((other) => [other.token, other.logprob]) };
  if (token.token.includes("\ufffd")) kept.b = token.bytes;
  return kept;
}

/** Usage of an answer that was gone on with: what it took before, and since. */
function addedUsage(earlier, usage) {
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  return {
    prompt: usage.prompt_tokens,
    cached,
    completion: usage.completion_tokens + (earlier?.completion ?? 0),
    latest: usage.completion_tokens,
  };
}
