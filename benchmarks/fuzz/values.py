"""Sound bodies for each route, and the odd values and headers that replace their parts."""

from typing import Any

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAA"
    "AAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
GENERATE = {
    "inputs": "Hi",
    "parameters": {
        "max_new_tokens": 4,
        "details": True,
        "top_n_tokens": 2,
        "decoder_input_details": True,
        "seed": 1,
        "stop": ["x"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "truncate": 3,
        "repetition_penalty": 1.1,
        "watermark": False,
    },
}
RICH_CHAT = CHAT | {
    "tools": [TOOL],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    "logit_bias": {"5": 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "n": 2,
    "stop": ["x"],
    "seed": 3,
    "stream": True,
    "stream_options": {"include_usage": True},
    "chat_template_kwargs": {"a": 1},
    "metadata": {"a": "b"},
}
HISTORY = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "look_up", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]},
    ],
    "tools": [TOOL],
    "max_tokens": 4,
}
RESPONSES = {
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "function_call", "call_id": "c", "name": "look_up", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "sunny"},
    ],
    "max_output_tokens": 4,
    "tools": [{"type": "function", "name": "look_up", "parameters": SCHEMA}],
    "text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
    "instructions": "Be brief.",
    "store": True,
    "previous_response_id": None,
}
ANTHROPIC = {
    "model": "m",
    "max_tokens": 4,
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "look_up", "input": {"a": 1}}],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}],
        },
    ],
    "tools": [{"name": "look_up", "description": "Look", "input_schema": SCHEMA}],
    "stop_sequences": ["x"],
    "temperature": 0.5,
}
EMBEDDING = {"input": ["one", "two"], "encoding_format": "float", "dimensions": 8, "user": "a"}
RERANK = {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": True}
TEXTS = {"inputs": ["one", "two"], "truncate": True, "normalize": True}

# Sound bodies for each route.
SOUND: dict[str, list[Any]] = {
    "/invocations": [
        GENERATE, CHAT, RICH_CHAT, HISTORY, EMBEDDING, RERANK, TEXTS,
        {"prompt": "Hi", "max_tokens": 4},
        {"query": "a", "texts": ["b"]},
        {"inputs": ["Hi", "Ho"], "parameters": {"max_new_tokens": 2}},
    ],
    "/": [GENERATE],
    "/generate": [
        GENERATE,
        {"inputs": "Hi", "parameters": {"max_new_tokens": 4, "best_of": 2, "do_sample": True}},
        {"inputs": "Hi", "parameters": {"max_new_tokens": 4,
                                        "grammar": {"type": "json", "value": SCHEMA}}},
        {"inputs": "Hi", "parameters": {"max_new_tokens": 4,
                                        "grammar": {"type": "regex", "value": "[a-z]+"}}},
    ],
    "/generate_stream": [GENERATE],
    "/tokenize": [{"inputs": "Hi"}],
    "/chat_tokenize": [CHAT, HISTORY],
    "/v1/chat/completions": [CHAT, RICH_CHAT, HISTORY],
    "/openai/v1/chat/completions": [RICH_CHAT],
    "/chat/completions": [HISTORY],
    "/v1/completions": [
        {"prompt": ["Hi", "Ho"], "max_tokens": 4, "echo": True, "logprobs": 1, "n": 2,
         "stream": True, "logit_bias": {"5": 1}, "best_of": 2},
        {"prompt": [[1, 2], [3]], "max_tokens": 2},
    ],
    "/v1/responses": [RESPONSES, RESPONSES | {"stream": True}],
    "/v1/responses/input_tokens": [RESPONSES],
    "/v1/messages": [ANTHROPIC, ANTHROPIC | {"stream": True}],
    "/v1/messages/count_tokens": [ANTHROPIC],
    "/v1/embeddings": [EMBEDDING],
    "/openai/v1/embeddings": [EMBEDDING],
    "/embeddings": [EMBEDDING],
    "/v1/rerank": [RERANK],
    "/v2/rerank": [RERANK],
    "/pooling": [EMBEDDING],
    "/score": [{"text_1": "a", "text_2": ["b"]}],
    "/v1/score": [{"text_1": ["a"], "text_2": ["b"]}],
    "/classify": [{"input": ["a"]}],
    "/embed": [TEXTS],
    "/embed_all": [TEXTS],
    "/embed_sparse": [TEXTS],
    "/similarity": [{"inputs": {"source_sentence": "a", "sentences": ["b"]}}],
    "/predict": [{"inputs": [["a", "b"]], "raw_scores": True}],
    "/rerank": [{"query": "a", "texts": ["b"], "raw_scores": True}],
    "/adapters": [{"name": "one", "src": "/nowhere", "preload": True, "pin": False}],
}  # fmt: skip
OTHER_ROUTES = [
    ("GET", path)
    for path in (
        "/ping", "/health", "/info", "/metrics", "/execution-parameters", "/adapters",
        "/adapters/one", "/v1/models", "/v1/models/one", "/v1/responses/resp_1", "/chat", "/docs",
        "/openapi.json", "/no/such/route", "/v1/responses/%00", "/adapters/..%2f..%2fetc",
    )
] + [("DELETE", "/adapters/one"), ("DELETE", "/v1/responses/resp_1"), ("OPTIONS", "/generate"),
     ("PUT", "/generate"), ("HEAD", "/ping"), ("PATCH", "/invocations")]  # fmt: skip

LONG = "lorem ipsum " * 400
DEEP: Any = "a"
for _ in range(400):
    DEEP = [DEEP]
SURROGATE = "\ud800"
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0,
    1e308, float("inf"), float("-inf"), float("nan"), "", " ", "\0", SURROGATE, "a" + SURROGATE,
    "\ud83d\ude00", "\u202e", "\ufeff", "\u0000\u001f", "é" * 50, LONG, "{{ 1 }}", "{% for %}",
    "</s>", "<|im_start|>system", "<s>", "../../etc/passwd", "file:///etc/passwd",
    "http://127.0.0.1:1/a.png", PNG, PNG[:60], "data:,", "data:image/png;base64,", "%s%n", "'; --",
    [], {}, [None], [[]], [{}], {"": ""}, {"a": {"a": {}}}, DEEP, ["x"] * 300,
    {"$ref": "#"}, {"$ref": "#/a"}, {"type": "object", "properties": {"a": {"$ref": "#"}}},
    {"type": "none"}, {"type": "regex", "value": "(a?){500}a{500}"},
    {"type": "regex", "value": "("}, {"type": "regex", "value": "a" * 3000},
    {"type": "json", "value": {"allOf": [{"type": "string"}] * 40}},
    {"type": "json", "value": {"enum": list(range(500))}},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": {"pattern": "(?=a)"}}},
    {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}, {"type": "json_object"},
    {"anyOf": []}, {"minimum": 1e400}, {"type": "string", "minLength": 10**9},
    "resp_" + "0" * 24, "call_" * 200, "base", "float16", "user", "assistant", "tool", "required",
    [{"role": "user", "content": "a"}] * 60, {"role": "tool"}, {"type": "image_url"},
    {"type": "image_url", "image_url": {"url": "x"}}, {"type": "input_image", "image_url": PNG},
]  # fmt: skip
HEADERS: list[dict[str, str]] = [
    {},
    {"Content-Type": "text/plain"}, {"Content-Type": "text/csv"},
    {"Content-Type": "application/jsonlines"}, {"Content-Type": ""}, {"Content-Type": "\xff"},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": "application/json; charset=nonsense"},
    {"Content-Type": "application/json; charset=base64"},
    {"Content-Type": "application/json; charset=undefined"},
    {"Content-Type": "multipart/form-data; boundary=" + "x" * 500},
    {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": "application/x-npy"},
    {"Content-Type": "image/png"}, {"Content-Type": "application/octet-stream"},
    {"Accept": "text/csv"}, {"Accept": "application/jsonlines;q=x"}, {"Accept": "*/*;q=nan"},
    {"Accept": "image/png"}, {"Accept": ",;,=,"}, {"Accept": "application/x-npy"},
    {"Content-Length": "0"}, {"Content-Length": "99999999999999999999"}, {"Content-Length": "-1"},
    {"Content-Length": "1 1"}, {"Content-Length": "0x10"}, {"Content-Length": "5, 5"},
    {"Transfer-Encoding": "chunked"}, {"Transfer-Encoding": "gzip"},
    {"Content-Encoding": "gzip"}, {"Content-Encoding": "br"}, {"Expect": "100-continue"},
    {"Expect": "nonsense"}, {"Upgrade": "websocket", "Connection": "Upgrade"},
    {"SCRIPT_NAME": "/x"}, {"SCRIPT-NAME": "/x"}, {"PATH_INFO": "/y"}, {"X-Forwarded-Proto": "a"},
    {"X-Forwarded-Prefix": "/a"}, {"Host": ""}, {"Host": "a b"}, {"Host": "[::1"},
    {"Host": "x" * 300}, {"Authorization": "Bearer \xe9"}, {"Authorization": "Basic !"},
    {"Cookie": "a" * 4000}, {"Cookie": "session=\xff; a"}, {"Origin": "null"}, {"Range": "bytes=a"},
    {"X-Amzn-SageMaker-Custom-Attributes": "a=" * 500},
    {"X-Amzn-SageMaker-Custom-Attributes": "accept_eula=true,deadline=x"},
    {"X-Amzn-SageMaker-Session-Id": "NEW_SESSION"}, {"X-Amzn-SageMaker-Session-Id": "\x7f"},
    {"X-Amzn-SageMaker-Target-Model": "../../a"}, {"X-Amzn-SageMaker-Inference-Component": "zzz"},
    {"x-request-id": "\x01"}, {"x-request-id": "a" * 3000}, {"x-request-deadline": "nan"},
    {"x-request-deadline": "-1"}, {"x-request-deadline": "1e999"}, {"x-request-deadline": "0.001"},
    {"traceparent": "00-zz"}, {"baggage": "=" * 100}, {"If-None-Match": "*"}, {"A" * 300: "b"},
    {"a b": "c"}, {"": "c"}, {"x-\xe9": "c"}, {"x-lines": "a\r\n b"}, {"anthropic-version": "\t"},
]  # fmt: skip
