"""`invoke`: one call of an endpoint."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from sagemaker_deploy import config as configuration
from sagemaker_deploy import invoke as calls
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import print_json
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError, InvocationFailed
from sagemaker_deploy.plan.requests import component_name


@click.command()
@click.argument("name")
@click.argument("prompt", required=False)
@click.option("--system", help="System message.")
@click.option("--messages", help="The messages as JSON, in place of a prompt.")
@click.option("--file", type=click.Path(path_type=Path), help="File with the whole body; - reads.")
@click.option("--content-type", default="application/json", show_default=True)
@click.option("--generate", is_flag=True, help="Send TGI's `inputs`, not messages.")
@click.option("--max-tokens", type=int, help="Most tokens to generate.")
@click.option("--stream", is_flag=True, help="Print the text as it comes.")
@click.option("--component", help="Inference component (the file's own is found by itself).")
@click.option("--variant", help="Production variant.")
@click.option("--target-model", help="Model of a multi-model endpoint, as in a.tar.gz.")
@click.option("--session", help="Session id, or NEW_SESSION.")
@click.option("--attributes", help="X-Amzn-SageMaker-Custom-Attributes.")
@click.option("-f", "--config", "path", type=click.Path(path_type=Path),
              help="File whose region, profile and component are meant.")  # fmt: skip
@options.region
@options.profile
@options.as_json
def invoke(
    name: str,
    prompt: str | None,
    system: str | None,
    messages: str | None,
    file: Path | None,
    content_type: str,
    generate: bool,
    max_tokens: int | None,
    stream: bool,
    component: str | None,
    variant: str | None,
    target_model: str | None,
    session: str | None,
    attributes: str | None,
    path: Path | None,
    region: str | None,
    profile: str | None,
    as_json: bool,
) -> None:
    """Call the endpoint NAME with a PROMPT, messages or a file.

    \b
      sagemaker_deploy invoke chat "What is deep learning?" --stream
      sagemaker_deploy invoke chat --file body.json --json
    """
    config = _own_config(name, path)
    if component is None and config and config.component:
        component = component_name(config)
    address = calls.Address(name, component, variant, target_model, session, attributes)
    body = _body(prompt, system, messages, file, generate, max_tokens, stream)
    aws = Aws(
        region or (config.region if config else None),
        profile or (config.profile if config else None),
    )
    if stream:
        parts = calls.call_stream(aws, address, body, content_type)
        _print_stream(parts, as_json)
        return
    answer = calls.call(aws, address, body, content_type)
    if answer.new_session:
        click.echo(f"session: {answer.new_session}", err=True)
    if as_json:
        print_json(_parsed(answer))
    else:
        click.echo(answer.text)


def _body(
    prompt: str | None,
    system: str | None,
    messages: str | None,
    file: Path | None,
    generate: bool,
    max_tokens: int | None,
    stream: bool,
) -> bytes:
    if sum(option is not None for option in (prompt, messages, file)) != 1:
        raise ConfigError(["give one of PROMPT, --messages and --file"])
    if file:
        return sys.stdin.buffer.read() if str(file) == "-" else _read(file)
    if messages is not None:
        try:
            parsed = json.loads(messages)
        except ValueError as error:
            raise ConfigError([f"--messages: not JSON: {error}"]) from error
        body = {"messages": parsed, "stream": stream}
        return json.dumps(body | ({"max_tokens": max_tokens} if max_tokens else {})).encode()
    assert prompt is not None
    if generate:
        return json.dumps(calls.generate_body(prompt, max_tokens, stream=stream)).encode()
    return json.dumps(calls.messages_body(prompt, system, max_tokens, stream=stream)).encode()


def _read(file: Path) -> bytes:
    if not file.is_file():
        raise ConfigError([f"--file {file}: no such file"])
    return file.read_bytes()


def _print_stream(parts: Iterator[bytes], as_json: bool) -> None:
    if as_json:
        for line in calls.lines(parts):
            if line.startswith("data:"):
                click.echo(line.removeprefix("data:").strip())
        return
    for text in calls.stream_text(parts):
        click.echo(text, nl=False)
        sys.stdout.flush()
    click.echo()


def _parsed(answer: calls.Answer) -> object:
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise InvocationFailed(f"the answer is {answer.content_type}, not JSON") from error


def _own_config(name: str, path: Path | None) -> Config | None:
    """Load the named configuration, or this folder's, if it is this endpoint's."""
    file = path or options.default_file()
    if file is None:
        return None
    config = configuration.load(file, {})
    return config if config.name == name else None
