"""Bodies of TGI's generate API from OpenAI's, and the other way around."""

from pathlib import Path
from typing import Any

import jinja2.sandbox

from sagemaker_deploy.proxy.translation.events import Json
from sagemaker_deploy.proxy.translation.unsupported import Unsupported

# Both APIs have these fields, with the same meaning.
SAME = ("top_k", "repetition_penalty", "frequency_penalty", "seed")
# Fields that would change the answer, and their neutral values.
NOT_IN_GENERATE = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "presence_penalty": (None, 0),
}
NOT_IN_COMPLETIONS = {
    "best_of": (None, 1),
    "watermark": (None, False),
    "typical_p": (None, 1, 1.0),
    "decoder_input_details": (None, False),
    "top_n_tokens": (None, 0),
    "adapter_id": (None,),
}


def generate_from_completion(body: Json) -> Json:
    """Translate a completion's body. Raises Unsupported."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise Unsupported("prompt", "must be one text: this container takes `inputs`")
    return {"inputs": prompt, "parameters": _parameters(body), "stream": True}


def generate_from_chat(body: Json, template: Path | None) -> Json:
    """Render a chat with a template file. Raises Unsupported without one."""
    if template is None:
        reason = (
            "this container takes `inputs` only; set MESSAGES_API_ENABLED=true on it, "
            "or name a `chat_template` file in the proxy's models"
        )
        raise Unsupported("messages", reason)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    values = {"messages": body.get("messages"), "add_generation_prompt": True}
    try:
        text = environment.from_string(template.read_text()).render(
            **values, bos_token="", eos_token="", raise_exception=_raise
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise Unsupported("messages", f"the chat template failed: {error}") from error
    parameters = _parameters(body)
    return {"inputs": text, "parameters": parameters, "stream": True}


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _parameters(body: Json) -> Json:
    _refuse(body, NOT_IN_GENERATE, "this container's generate API has no such field")
    parameters: Json = {"return_full_text": False, "details": True}
    for name in SAME:
        if body.get(name) or (name == "seed" and body.get(name) is not None):  # 0 is a seed
            parameters[name] = body[name]
    temperature = 1.0 if body.get("temperature") is None else body["temperature"]
    parameters["do_sample"] = temperature > 0
    if temperature not in (0, 1):
        parameters["temperature"] = temperature
    if 0 < (body.get("top_p") or 1) < 1:
        parameters["top_p"] = body["top_p"]
    if most := body.get("max_tokens") or body.get("max_completion_tokens"):
        parameters["max_new_tokens"] = most
    if stop := stops(body):
        parameters["stop"] = stop
    if grammar := _grammar(body.get("response_format")):
        parameters["grammar"] = grammar
    return parameters


def stops(body: Json) -> list[str]:
    """Return the stop strings of one of OpenAI's bodies."""
    stop = body.get("stop")
    return [stop] if isinstance(stop, str) else list(stop or [])


def _grammar(form: Any) -> Json | None:
    kind = (form or {}).get("type", "text")
    if kind == "text":
        return None
    if kind == "json_schema":
        return {"type": "json", "value": form["json_schema"]["schema"]}
    if kind == "json_object":
        return {"type": "json", "value": {"type": "object"}}
    return {"type": kind, "value": form.get("value")}


def completion_from_generate(body: Json) -> Json:
    """Translate a generate body to a streamed completion with token ids. Raises Unsupported."""
    parameters = body.get("parameters") or {}
    _refuse(parameters, NOT_IN_COMPLETIONS, "this container's completions have no such field")
    completion: Json = {"prompt": body.get("inputs"), "stream": True, "return_token_ids": True}
    completion["stream_options"] = {"include_usage": True}
    names = {name: name for name in (*SAME, "temperature", "top_p")}
    names |= {"max_new_tokens": "max_tokens", "truncate": "truncate_prompt_tokens"}
    for name, openai_name in names.items():
        if parameters.get(name) is not None:
            completion[openai_name] = parameters[name]
    if parameters.get("stop"):
        completion |= {"stop": parameters["stop"], "include_stop_str_in_output": True}
    if not _samples(parameters):
        completion["temperature"] = 0
    if parameters.get("details"):
        completion["logprobs"] = 1
    grammar = parameters.get("grammar") or {}
    if grammar.get("type") in ("json", "regex"):
        completion["structured_outputs"] = {grammar["type"]: grammar["value"]}
    return completion


def _samples(parameters: Json) -> bool:
    """Return whether TGI would sample."""
    warps = any(parameters.get(name) not in (None, 1, 1.0) for name in ("temperature", "top_p"))
    return bool(parameters.get("do_sample") or warps or parameters.get("top_k"))


def _refuse(values: Json, neutral: dict[str, tuple[Any, ...]], reason: str) -> None:
    for name, allowed in neutral.items():
        if values.get(name) not in allowed:
            raise Unsupported(name, reason)
