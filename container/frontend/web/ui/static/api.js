// Requests to the server: the API key, errors as text, and server-sent events.

// The page may be behind a prefix; everything is relative to the folder above this file's.
const BASE = new URL("../", import.meta.url);
const KEY = "api-key";
const GET_TIMEOUT_MS = 10000;
const CUT = "The connection ended before the answer did: the server or a proxy closed it.";

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function address(path) {
  return new URL(path, BASE).href;
}

export async function getJson(path) {
  return (await get(path)).json();
}

export async function getText(path) {
  return (await get(path)).text();
}

function get(path) {
  return send(path, { signal: AbortSignal.timeout(GET_TIMEOUT_MS) });
}

export async function postJson(path, body, signal) {
  return send(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

// Yields the JSON objects of a stream until [DONE]. Raises ApiError for an error event, and for a
// stream that ends without one.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await readPart(reader);
    rest += value || "";
    const parts = rest.split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = dataOf(part);
      if (data === "[DONE]") return;
      if (data) yield checked(JSON.parse(data));
    }
    if (done) throw new ApiError(CUT, 0);
  }
}

async function readPart(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(CUT, 0);
  }
}

function dataOf(event) {
  return event
    .split(/\r?\n/)
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).trimStart())
    .join("\n");
}

function checked(event) {
  if (event.error) throw new ApiError(messageOf(event), 0);
  return event;
}

async function send(path, options) {
  const headers = { ...options.headers };
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  let response;
  try {
    response = await fetch(address(path), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (error.name === "TimeoutError") throw new ApiError("The server does not answer.", 0);
    throw new ApiError("The server cannot be reached: is it running?", 0);
  }
  if (!response.ok) throw new ApiError(await explain(response), response.status);
  return response;
}

async function explain(response) {
  const text = await response.text();
  let message = text;
  try {
    message = messageOf(JSON.parse(text));
  } catch {
    // not JSON: a proxy's page, say
  }
  if (response.status === 401) return "The API key is missing or wrong: enter it with “API key”.";
  if (response.status === 429) {
    const wait = response.headers.get("Retry-After");
    return `The server is full${wait ? `; try again in ${wait} s` : ""}. (${message})`;
  }
  if (message.includes("no chat template")) message += ": check “Continue the text” in the settings";
  return message.slice(0, 600) || `HTTP ${response.status}`;
}

function messageOf(body) {
  const error = body.error ?? body.message ?? body;
  return typeof error === "string" ? error : error.message || JSON.stringify(error);
}
