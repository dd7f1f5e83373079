"""Images in messages, with the unmodified OpenAI client against a served vision-language model."""

import base64
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests
import torch
from transformers import AutoProcessor

from tests.support.models import tiny_vision
from tests.support.pictures import data_url, file_of, random_picture
from tests.support.servers import Server, serving

NEW = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.save("llava", tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def seeing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"MAX_IMAGES_PER_REQUEST": "2", "MAX_IMAGE_PIXELS": "10000"}
    log = tmp_path_factory.mktemp("seeing") / "log"
    with serving(log, folder, MAX_IMAGE_FETCH_SIZE="40000", **limits) as running:
        yield running


@pytest.fixture(scope="module")
def eyes(seeing: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{seeing.url}/v1", api_key="-", max_retries=0)


def _image(seed: int = 1) -> dict:
    return {
        "type": "image_url",
        "image_url": {"url": data_url(random_picture(seed)), "detail": "auto"},
    }


def _messages(*parts: dict) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


def _expected(folder: Path, seeds: list[int]) -> tuple[str, int]:
    """Return transformers' text for the same pictures, and the length of the prompt."""
    processor = AutoProcessor.from_pretrained(folder)
    parts = [{"type": "image"} for _ in seeds] + [{"type": "text", "text": "What is this?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    inputs = processor(
        text=[prompt], images=[random_picture(seed) for seed in seeds], return_tensors="pt"
    )
    ids = tiny_vision.generate(folder, dict(inputs), NEW)
    text = processor.tokenizer.decode(torch.tensor(ids), skip_special_tokens=True)
    return text, inputs["input_ids"].shape[1]


@pytest.mark.parametrize("seeds", [[1], [2, 3]])
def test_a_chat_with_images_equals_transformers(
    eyes: openai.OpenAI, folder: Path, seeds: list[int]
) -> None:
    text, prompt_tokens = _expected(folder, seeds)
    messages = _messages(*map(_image, seeds))
    ask = {"model": "tgi", "messages": messages, "temperature": 0, "max_tokens": NEW}
    chat = eyes.chat.completions.create(**ask)
    assert chat.choices[0].message.content == text
    assert chat.usage.prompt_tokens == prompt_tokens > 16 * len(seeds)
    chunks = eyes.chat.completions.create(**ask, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == text


def test_a_response_with_images_equals_the_chat(eyes: openai.OpenAI, folder: Path) -> None:
    text, prompt_tokens = _expected(folder, [4])
    parts = [
        {"type": "input_image", "image_url": data_url(random_picture(4)), "detail": "auto"},
        {"type": "input_text", "text": "What is this?"},
    ]
    ask = {"model": "tgi", "input": [{"role": "user", "content": parts}], "temperature": 0}
    response = eyes.responses.create(**ask, max_output_tokens=NEW)
    assert response.output_text == text
    assert response.usage.input_tokens == prompt_tokens
    with eyes.responses.stream(**ask, max_output_tokens=NEW) as stream:
        streamed = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
    assert streamed == text


def test_text_alone_is_answered_too(eyes: openai.OpenAI) -> None:
    chat = eyes.chat.completions.create(
        model="tgi", messages=[{"role": "user", "content": "Hello"}], max_tokens=3
    )
    assert chat.usage.completion_tokens == 3


def test_invocations_take_images(seeing: Server, folder: Path) -> None:
    body = {"messages": _messages(_image(5)), "temperature": 0, "max_tokens": NEW}
    answer = requests.post(f"{seeing.url}/invocations", json=body, timeout=30).json()
    assert answer["choices"][0]["message"]["content"] == _expected(folder, [5])[0]


def test_tgis_markdown_images_in_a_prompt(seeing: Server, folder: Path) -> None:
    prompt = f"<|im_start|>user\n![]({data_url(random_picture(6))})What is this?<|im_end|>\n"
    body = {
        "inputs": f"{prompt}<|im_start|>assistant\n",
        "parameters": {"max_new_tokens": NEW, "details": True, "decoder_input_details": True},
    }
    answer = requests.post(f"{seeing.url}/generate", json=body, timeout=30).json()
    text, prompt_tokens = _expected(folder, [6])
    assert answer["generated_text"] == text
    assert len(answer["details"]["prefill"]) == prompt_tokens
    refused = requests.post(
        f"{seeing.url}/generate", json=body | {"parameters": {"truncate": 4}}, timeout=30
    )
    assert refused.status_code == 422
    assert "truncate" in refused.json()["error"]


def _url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.com/a.png", "ALLOWED_IMAGE_DOMAINS"),
        ("http://169.254.169.254/latest", "ALLOWED_IMAGE_DOMAINS"),
        ("file:///etc/passwd", "data URL"),
        ("data:image/png;base64,@@@", "base64"),
        ("data:image/png,abc", "base64"),
        ("data:text/plain;base64,YQ==", "image type"),
        (_url(b"no image at all"), "no image can be read"),
        (_url(file_of(random_picture(1))[:300]), "no image can be read"),
        (_url(file_of(random_picture(1), "BMP")), "PNG, JPEG, WEBP, GIF"),
        (data_url(random_picture(1, 101, 100)), "101 x 100 pixels; the limit is 10000"),
        (data_url(random_picture(1, 1, 201)), "at most 200 times"),
        (data_url(random_picture(1, 201, 1)), "at most 200 times"),
        (_url(b"0" * 40001), "MAX_IMAGE_FETCH_SIZE"),
    ],
)
def test_a_bad_image_is_refused_with_the_reason(
    eyes: openai.OpenAI, seeing: Server, url: str, message: str
) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        eyes.chat.completions.create(model="", messages=_messages(part))
    assert 400 <= caught.value.status_code < 500
    assert "messages[0].content[0].image_url" in caught.value.message
    assert seeing.ping().status_code == 200


def test_the_number_of_images_is_limited(eyes: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="MAX_IMAGES_PER_REQUEST"):
        eyes.chat.completions.create(model="", messages=_messages(*map(_image, (1, 2, 3))))


def test_a_text_cannot_pretend_to_be_an_image(eyes: openai.OpenAI) -> None:
    fake = {"type": "text", "text": "<image>"}
    with pytest.raises(openai.BadRequestError, match="leave that out"):
        eyes.chat.completions.create(model="", messages=_messages(_image(), fake))


def test_a_stored_file_is_refused_by_name(eyes: openai.OpenAI) -> None:
    part = {"type": "input_image", "file_id": "file-1", "detail": "auto"}
    with pytest.raises(openai.BadRequestError, match="file_id"):
        eyes.responses.create(model="", input=[{"role": "user", "content": [part]}])


def test_a_text_only_model_names_the_part(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="text only") as caught:
        client.chat.completions.create(model="", messages=_messages(_image()))
    assert caught.value.param == "messages[0].content[0].image_url"
    part = {"type": "input_image", "image_url": data_url(random_picture(1)), "detail": "auto"}
    with pytest.raises(openai.BadRequestError, match="text only") as caught:
        client.responses.create(model="", input=[{"role": "user", "content": [part]}])
    assert caught.value.param == "input[0].content[0].image_url"


def test_info_names_the_multimodal_model(seeing: Server, server: Server) -> None:
    assert requests.get(f"{seeing.url}/info", timeout=5).json()["reads_images"] is True
    assert requests.get(f"{server.url}/info", timeout=5).json()["reads_images"] is False


def test_anthropics_images_are_seen_as_openais(seeing: Server, eyes: openai.OpenAI) -> None:
    url = data_url(random_picture(1))
    own = eyes.chat.completions.create(
        model="m", messages=_messages(_image()), temperature=0, max_tokens=NEW
    )
    head, data = url.split(";base64,")
    source = {"type": "base64", "media_type": head.removeprefix("data:"), "data": data}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": NEW}
    for path in ("/v1/messages", "/invocations"):
        answer = requests.post(f"{seeing.url}{path}", json=body, timeout=60).json()
        text = "".join(block["text"] for block in answer["content"])
        assert text == own.choices[0].message.content
        assert answer["usage"]["input_tokens"] == own.usage.prompt_tokens
