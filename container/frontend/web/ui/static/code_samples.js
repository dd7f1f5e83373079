// A request as a program: curl, OpenAI's client for Python, boto3.

import { pathOf } from "./request.js";

// What OpenAI's client takes as arguments; other fields go into its `extra_body`.
const OPENAI_FIELDS = new Set([
  "model", "messages", "prompt", "temperature", "top_p", "max_tokens", "seed", "stop", "frequency_penalty",
  "presence_penalty", "logprobs", "top_logprobs", "reasoning_effort", "response_format", "tools",
  "tool_choice", "stream", "stream_options",
]);

export const writers = { curl, python, boto3 };

function curl(body, url, hasKey) {
  const key = hasKey ? `\n  -H "Authorization: Bearer $API_KEY" \\` : "";
  const data = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl --no-buffer ${url}${pathOf(body)} \\
  -H 'Content-Type: application/json' \\${key}
  -d '${data}'
`;
}

function python(body, url, hasKey) {
  const fields = Object.entries(body);
  const known = fields.filter(([name]) => OPENAI_FIELDS.has(name));
  const others = fields.filter(([name]) => !OPENAI_FIELDS.has(name));
  if (others.length) known.push(["extra_body", Object.fromEntries(others)]);
  const given = known.map(([name, value]) => `    ${name}=${literal(value, 1)},`).join("\n");
  const key = hasKey ? 'os.environ["API_KEY"]' : '"-"';
  const isText = "prompt" in body;
  return `${hasKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${url}v1", api_key=${key})
stream = client.${isText ? "" : "chat."}completions.create(
${given}
)
for chunk in stream:
    for choice in chunk.choices:
        print(${isText ? "choice.text" : 'choice.delta.content or ""'}, end="", flush=True)
print()
`;
}

function boto3(body) {
  return `import json

import boto3

body = ${literal(body, 0)}
client = boto3.client("sagemaker-runtime")
response = client.invoke_endpoint_with_response_stream(
    EndpointName="my-endpoint", ContentType="application/json", Body=json.dumps(body)
)
text = b"".join(event["PayloadPart"]["Bytes"] for event in response["Body"]).decode()
for line in text.splitlines():
    if line.startswith("data: {"):
        for choice in json.loads(line[6:])["choices"]:
            print(${"prompt" in body ? 'choice["text"]' : 'choice["delta"].get("content") or ""'}, end="", flush=True)
print()
`;
}

// A JSON value as Python writes it.
export function literal(value, depth) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return JSON.stringify(value);
  const pad = "    ".repeat(depth + 1);
  const end = "    ".repeat(depth);
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, depth + 1))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item, depth + 1)}`);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  if (!items.length) return open + close;
  return `${open}\n${items.map((item) => `${pad}${item},\n`).join("")}${end}${close}`;
}
