"""llm_serving's routes, as its README calls them."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests
import torch
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM

from tests.support.servers import DEMO_MODEL, Server, serving

PROMPT = "You are a helpful assistant."


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server") / "log", SYSTEM_PROMPT=PROMPT) as running:
        yield running


def ask(server: Server, path: str = "/chat/completions", **body: object) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60)


def test_the_readmes_client_works_as_it_stands(server: Server) -> None:
    text = ""
    with openai.OpenAI(api_key="OPENAI_API_KEY", base_url=f"{server.url}/") as client:
        stream = client.chat.completions.create(
            messages=[{"role": "user", "content": "tell me about Microsoft"}],
            model="gpt-4o",
            stream=True,
        )
        for chunk in stream:
            if chunk.choices[0].delta.content is not None:
                text += chunk.choices[0].delta.content
    assert text


def test_the_status_is_that_of_the_readme(server: Server) -> None:
    status = requests.get(f"{server.url}/chat", timeout=60).json()
    assert status == {
        "status": "running",
        "llm_serving_url": server.url,
        "model_name": os.fspath(DEMO_MODEL),
        "max_new_tokens": 2047,
        "device": "cpu",
        "do_sample": True,
        "system_prompt": PROMPT,
    }


def test_a_missing_role_is_the_users(server: Server) -> None:
    body = {"temperature": 0, "max_tokens": 30, "model": "any"}
    question = "What is deep learning?"
    named = ask(server, messages=[{"role": "user", "content": question}], **body).json()
    for message in ({"content": question}, {"role": None, "content": question}):
        unnamed = ask(server, messages=[message], **body).json()
        assert unnamed["choices"] == named["choices"]
        assert unnamed["usage"]["prompt_tokens"] == named["usage"]["prompt_tokens"]
    strict = ask(server, "/v1/chat/completions", messages=[{"content": question}], **body)
    assert (strict.status_code, strict.json()["error"]["param"]) == (400, "messages[0].role")
    assert named["model"] == "any"


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions", "/invocations"])
def test_the_default_system_prompt_is_added(server: Server, path: str) -> None:
    body = {"temperature": 0, "max_tokens": 1}
    user = {"role": "user", "content": "Hi"}
    system = {"role": "system", "content": PROMPT}
    with_own = ask(server, path, messages=[system, user], **body).json()["usage"]
    without = ask(server, path, messages=[user], **body).json()["usage"]
    other = ask(server, path, messages=[system | {"content": "Be kind."}, user], **body).json()
    assert without["prompt_tokens"] == with_own["prompt_tokens"] > other["usage"]["prompt_tokens"]


@pytest.mark.parametrize("body", [{}, {"messages": "Hi"}, {"messages": ["Hi"]}, {"messages": []}])
def test_mistakes_are_answered_as_openai_does(server: Server, body: dict) -> None:
    answer = ask(server, **body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("messages")


def test_a_bloom_model_gets_the_last_user_text_as_its_prompt(tmp_path: Path) -> None:
    folder = tmp_path / "bloomz"
    save_bloom(folder)
    with serving(tmp_path / "log", folder) as server:
        # The README's body: the role is a placeholder.
        text = "Translate to English: Je t'aime."
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi"},
            {"role": "string", "content": text},
        ]
        answer = ask(server, messages=messages, max_tokens=12, temperature=0.0).json()
        expected, prompt_tokens = generate(folder, text, 12)
        assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected}
        assert answer["usage"]["prompt_tokens"] == prompt_tokens
        refused = ask(server, "/v1/chat/completions", messages=messages)
        assert refused.status_code == 400
        assert "no chat template" in refused.json()["error"]["message"]
        only_system = ask(server, messages=messages[:1])
        assert only_system.json()["error"]["message"] == (
            "`messages` must have a message of the user"
        )


def save_bloom(folder: Path) -> None:
    """Write a tiny random BLOOM with the demo model's tokenizer, which has no template then."""
    shutil.copytree(DEMO_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.jinja"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(1)
    config = BloomConfig(
        vocab_size=len(tokenizer), hidden_size=64, n_layer=2, n_head=4, eos_token_id=None
    )
    model = BloomForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)


def generate(folder: Path, text: str, count: int) -> tuple[str, int]:
    """What transformers' own greedy `generate` says, and the prompt's length."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    model = BloomForCausalLM.from_pretrained(folder).eval()
    out = model.generate(ids, max_new_tokens=count, do_sample=False, eos_token_id=None)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True), ids.shape[1]
