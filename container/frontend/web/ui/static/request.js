// The request that the settings describe: a chat, or a text to continue.

import { byId } from "./dom.js";

const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "max_tokens", "seed",
  "repetition_penalty", "frequency_penalty", "presence_penalty",
];
const ALTERNATIVES = 5;

export function pathOf(body) {
  return "prompt" in body ? "v1/completions" : "v1/chat/completions";
}

// Raises SyntaxError, naming the field, for JSON that cannot be read.
export function buildRequest(turns) {
  const isText = byId("continue-text").checked;
  const body = byId("model").value ? { model: byId("model").value } : {};
  Object.assign(body, isText ? { prompt: textOf(turns) } : { messages: messagesOf(turns) });
  for (const name of NUMBERS) {
    const input = byId(name);
    if (input.value.trim() !== "") body[name] = Number(input.value);
  }
  const stops = lines("stop-strings");
  if (stops.length) body.stop = stops;
  Object.assign(body, structured(), isText ? {} : chatFields());
  body.stream = true;
  body.stream_options = { include_usage: true };
  return body;
}

function chatFields() {
  const fields = {};
  if (byId("reasoning_effort").value) fields.reasoning_effort = byId("reasoning_effort").value;
  if (byId("logprobs").checked) Object.assign(fields, { logprobs: true, top_logprobs: ALTERNATIVES });
  return Object.assign(fields, tools());
}

// All that was written so far, by both sides.
function textOf(turns) {
  return turns.filter((turn, index) => !hasFailed(turn) && !isUnanswered(turns, index)).map((turn) => turn.content).join("");
}

function messagesOf(turns) {
  const system = byId("system").value.trim();
  const messages = turns.filter((turn, index) => !hasFailed(turn) && !isUnanswered(turns, index)).map(messageOf);
  return system ? [{ role: "system", content: system }, ...messages] : messages;
}

function hasFailed(turn) {
  return turn?.role === "assistant" && Boolean(turn.error) && !turn.content && !turn.tool_calls?.length;
}

// A message that got an error is left out with it: many templates want roles to alternate.
function isUnanswered(turns, index) {
  return turns[index].role === "user" && hasFailed(turns[index + 1]);
}

function messageOf(turn) {
  const message = { role: turn.role, content: turn.content };
  if (turn.images?.length) {
    const images = turn.images.map((url) => ({ type: "image_url", image_url: { url } }));
    message.content = [...images, { type: "text", text: turn.content }];
  }
  if (turn.reasoning) message.reasoning_content = turn.reasoning;
  if (turn.tool_calls?.length) message.tool_calls = turn.tool_calls;
  if (turn.tool_call_id) message.tool_call_id = turn.tool_call_id;
  if (turn.name) message.name = turn.name;
  return message;
}

function structured() {
  const format = byId("format").value;
  if (format === "json_object") return { response_format: { type: "json_object" } };
  if (format === "json_schema") {
    const schema = readJson("schema", "JSON Schema");
    return { response_format: { type: "json_schema", json_schema: { name: "answer", schema } } };
  }
  if (format === "regex") return { structured_outputs: { regex: byId("regex").value } };
  if (format === "choice") return { structured_outputs: { choice: lines("choices") } };
  return {};
}

function tools() {
  if (!byId("tools").value.trim()) return {};
  const functions = readJson("tools", "Tools");
  if (!functions.length) return {};
  return { tools: functions, tool_choice: byId("tool_choice").value };
}

export function readJson(id, name) {
  try {
    return JSON.parse(byId(id).value || "null");
  } catch (error) {
    throw new SyntaxError(`${name}: ${error.message}`);
  }
}

export function lines(id) {
  return byId(id).value.split("\n").filter((line) => line.trim() !== "");
}
