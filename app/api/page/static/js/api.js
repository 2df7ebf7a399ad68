// Requests to the server that the page came from, and its streams.

import { currentKey } from "./prefs.js";

/** The server refused, or failed at, a request; the message is its own. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The connection ended before the answer did, or there was none. */
export class ConnectionLost extends Error {}

/** Address of a route, also behind a proxy that serves the page below a path of its own. */
export function address(path) {
  return new URL(path, document.baseURI).href;
}

/**
 * Sends a request with the API key, if there is one.
 *
 * @throws {ApiError} the answer is an error
 * @throws {ConnectionLost} there is no answer
 */
export async function request(path, { method = "GET", body = null, headers = {}, signal = null } = {}) {
  const all = { ...headers };
  if (currentKey()) all.Authorization = `Bearer ${currentKey()}`;
  if (body !== null) all["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(address(path), {
      method,
      headers: all,
      body: body === null ? null : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ConnectionLost(error.message);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  const retry = Number(response.headers.get("retry-after"));
  let error = {};
  try {
    error = errorOf(JSON.parse(text));
  } catch {
    // A proxy's page, perhaps.
  }
  return new ApiError(error.message ?? (text.slice(0, 200) || `HTTP ${response.status}`), {
    status: response.status,
    code: error.code ?? null,
    retryAfter: retry > 0 ? retry : null,
  });
}

function errorOf(body) {
  return typeof body.error === "object" && body.error !== null ? body.error : { message: body.error ?? body.message };
}

export async function getJson(path, options) {
  return (await request(path, options)).json();
}

/**
 * Data of each server-sent event of a response, as text.
 *
 * @throws {ConnectionLost} the connection broke
 */
export async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let isOver = false;
  try {
    for (;;) {
      const { value, done } = await read(reader, signal);
      isOver = done;
      if (done) return;
      buffer += value;
      const parts = buffer.split(/\r?\n\r?\n/);
      buffer = parts.pop();
      for (const part of parts) {
        const data = dataOf(part);
        if (data !== null) yield data;
      }
    }
  } finally {
    if (!isOver) reader.cancel().catch(() => {}); // who reads no further wants no more of it
  }
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ConnectionLost(error.message);
  }
}

function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.length === 0 ? null : lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}

/** An event of a stream, unless it tells of a failure. */
export function parseEvent(data) {
  const event = JSON.parse(data);
  if (event.error) {
    const error = errorOf(event);
    throw new ApiError(error.message ?? "?", { code: error.code ?? null });
  }
  return event;
}
