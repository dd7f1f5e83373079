"""Templates that loop, take memory or write without end; and what is the same as in-process."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoTokenizer

from container.errors import TemplateFailed
from container.text.templates.chat_template import ChatTemplate
from container.text.templates.renderer import RenderError, TemplateRenderer
from container.text.tokenizer import Tokenizer
from tests.support.servers import DEMO_MODEL, wait_for

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def renderer() -> TemplateRenderer:
    return TemplateRenderer()


def _render(renderer: TemplateRenderer, template: str, **more: Any) -> str:
    return renderer.render(chat_template=template, messages=USER, **more)


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        (LOOP, "2 s of processor time"),
        ("{{ 'a'.center(2000000000) }}", "512 MiB of memory"),
        ("{{ 'a' * 2000000000 }}", "512 MiB of memory"),
        ("{% set x = ['a' * 1000000] %}{{ (x * 100000) | join }}", "memory"),
        ("{{ 'a'.center(17000000) }}", "more than 16777216 characters"),
        ("{{ raise_exception('no\nsecond line') }}", "no$"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_template_out_of_its_limits_fails_alone(
    renderer: TemplateRenderer, template: str, cause: str
) -> None:
    with pytest.raises(RenderError, match=cause):
        _render(renderer, template)
    assert _render(renderer, "{{ messages[0].content }}") == "Hi"


def test_a_template_that_loops_does_not_hold_up_others(renderer: TemplateRenderer) -> None:
    ended_at = []

    def loop() -> None:
        with pytest.raises(RenderError):
            _render(renderer, LOOP)
        ended_at.append(time.monotonic())

    looping = threading.Thread(target=loop)
    looping.start()
    assert _render(renderer, "{{ x }}", x=3) == "3"
    answered_at = time.monotonic()
    looping.join()
    assert answered_at < ended_at[0]


def test_many_large_requests_leave_a_process_for_small_ones(renderer: TemplateRenderer) -> None:
    ended_at = []

    def loop() -> None:
        with pytest.raises(RenderError):
            _render(renderer, LOOP, x="a" * 200_000)
        ended_at.append(time.monotonic())

    looping = [threading.Thread(target=loop) for _ in range(3)]
    for thread in looping:
        thread.start()
    assert [_render(renderer, "{{ x }}", x=number) for number in range(3)] == ["0", "1", "2"]
    answered_at = time.monotonic()
    for thread in looping:
        thread.join()
    assert answered_at < max(ended_at)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_a_dead_idle_process_fails_no_template(
    number: signal.Signals,
) -> None:
    renderer = TemplateRenderer()
    _render(renderer, "a")
    [process] = _template_processes()
    process.send_signal(number)
    wait_for(lambda: process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE), 10)
    assert _render(renderer, "{{ messages[0].content }}") == "Hi"
    assert process not in _template_processes()
    renderer.close()


def test_a_template_whose_process_was_killed_is_rendered_again() -> None:
    renderer = TemplateRenderer()
    _render(renderer, "a")
    [process] = _template_processes()
    texts: list[str] = []
    slow = "{% for a in range(99999) %}{% for b in range(9) %}{% endfor %}{% endfor %}b"
    rendering = threading.Thread(target=lambda: texts.append(_render(renderer, slow)))
    rendering.start()
    process.kill()
    rendering.join()
    assert texts == ["b"]
    renderer.close()


def _template_processes() -> list[psutil.Process]:
    """The newest process of a renderer; that of the module may have others."""
    results = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.ZombieProcess):
            if "container.text.templates.process" in process.cmdline():
                results.append(process)
    return sorted(results, key=lambda process: process.create_time())[-1:]


def test_numbers_of_any_size_are_passed_on(renderer: TemplateRenderer) -> None:
    assert _render(renderer, "{{ x }}", x=10**400) == str(10**400)
    assert _render(renderer, "{{ x }}", x=float("inf")) == "inf"


@pytest.mark.parametrize("template", ["{{ x | tojson }}", "{{ x }}", "{{ x | length }}"])
def test_arguments_of_any_depth_are_written_or_refused(
    renderer: TemplateRenderer, template: str
) -> None:
    pid = _pid(renderer)
    for depth in (100, 500, *range(950, 1010, 3), 5000, 100_000):
        x: Any = 1
        for _ in range(depth):
            x = [x]
        with contextlib.suppress(RenderError):
            assert _render(renderer, template, x=x)
            assert depth < 1000
    assert _render(renderer, template, x=[[1]])
    assert _pid(renderer) == pid


def _pid(renderer: TemplateRenderer) -> int:
    _render(renderer, "a")
    [process] = _template_processes()
    return process.pid


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
ASKED = [
    {"role": "system", "content": "Be kind"},
    {"role": "user", "content": "Hi", "name": None},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    {"role": "assistant", "content": "It is "},
]
GENERIC = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}:{{ m.content }}:{{ m | tojson }}]"
    "{% endfor %}{{ tools | tojson }}{{ extra }}{% if add_generation_prompt %}>{% endif %}"
)


@pytest.mark.parametrize("template", [None, GENERIC])
@pytest.mark.parametrize("continues", [True, False])
def test_prompts_are_those_of_transformers(
    tmp_path: Path, template: str | None, continues: bool
) -> None:
    inner = AutoTokenizer.from_pretrained(DEMO_MODEL)
    if template is not None:
        inner.chat_template = template
    expected = inner.apply_chat_template(
        ASKED, tools=[TOOL], tokenize=False, extra="x", continue_final_message=continues,
        add_generation_prompt=not continues,
    )  # fmt: skip
    tokenizer = Tokenizer(inner)
    options = {"extra": "x"}
    assert tokenizer.render_chat(ASKED, tools=[TOOL], options=options, continues=continues) == (
        expected
    )


def test_arguments_are_given_as_text_to_templates_that_need_it() -> None:
    inner = AutoTokenizer.from_pretrained(DEMO_MODEL)
    inner.chat_template = "{{ '' + messages[0].tool_calls[0].function.arguments }}"
    message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert json.loads(Tokenizer(inner).render_chat([message], continues=False)) == {"a": 1}


def test_the_failure_is_the_messages(tmp_path: Path) -> None:
    inner = AutoTokenizer.from_pretrained(DEMO_MODEL)
    inner.chat_template = {"other": "x", "rag": "y"}
    with pytest.raises(TemplateFailed):
        Tokenizer(inner).render_chat(USER)


def test_processes_end_with_their_renderer() -> None:
    renderer = TemplateRenderer()
    renderer.start()
    pid = renderer._idle[0]._process.pid
    del renderer
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"city": "Malmö"}, '{"city": "Malmö"}'), ('{"city": "Mal', '{"city": "Mal')],
)
def test_a_template_that_joins_text_gets_arguments_as_text(arguments: Any, expected: str) -> None:
    inner = AutoTokenizer.from_pretrained(DEMO_MODEL)
    inner.chat_template = (
        "{% for message in messages %}{% for call in message.tool_calls or [] %}"
        "{{ '<' + call.function.arguments + '>' }}{% endfor %}{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    template = ChatTemplate(inner)
    messages = [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        assert template.render(messages, {"tools": None}) == f"<{expected}>"
    finally:
        template.stop()
