"""The commands' options and exit codes; the modules beside this one do the work.

These are imported when a command runs: every process of the server imports this file.
"""

import dataclasses
import importlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from container.cli.doctor import Finding

ENDPOINT = "endpoint"
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


class Commands(click.Group):
    """The container's commands, and those of sagemaker_deploy as `endpoint`, where it is installed.

    That package is imported when the command runs, since the image does not have it.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        others = [ENDPOINT] if importlib.util.find_spec("sagemaker_deploy") else []
        return sorted([*super().list_commands(ctx), *others])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command. Raises UsageError if a package that it needs is missing."""
        if cmd_name != ENDPOINT or ENDPOINT not in self.list_commands(ctx):
            return super().get_command(ctx, cmd_name)
        try:
            group: click.Group = importlib.import_module("sagemaker_deploy.commands.main").main
        except ModuleNotFoundError as error:
            help_text = f"Deploy endpoints and call them; needs {error.name}: `make local`."
            return click.Command(ENDPOINT, help=help_text, callback=_refuse(str(error.name)))
        return group


def _refuse(package: str) -> Callable[[], None]:
    def refuse() -> None:
        hint = "pip install -e '.[deploy]', or `make local`"
        raise click.ClickException(f"{package} is not installed: {hint}")

    return refuse


@click.command()
@click.argument("url", required=False)
@click.option("--model", help="The model's name, or a LoRA adapter's.")
@click.option("--system", help="The system prompt.")
@click.option("--json-schema", "schema", help="A JSON Schema that answers follow, or its file.")
@click.option("--image", "images", multiple=True, type=Path, help="An image for the first message.")
@click.option("--max-tokens", type=click.IntRange(1), help="The longest answer.")
@click.option("--temperature", type=click.FloatRange(0), help="0 always takes the likeliest token.")
@click.option("--api-key", envvar="API_KEY", help="The server's API_KEY, if it has one.")
@click.option("-m", "--message", help="Ask this alone, print the answer and leave.")
def chat(
    url: str | None,
    schema: str | None,
    images: tuple[Path, ...],
    api_key: str | None,
    message: str | None,
    system: str | None,
    **sampling: Any,
) -> None:
    """Chat with a server, by default the one on this machine.

    URL is any server with OpenAI's chat API. Without a terminal, the message is read from the
    standard input.
    """
    from container.cli.chat import Chat, converse, response_format, wait_ready, write
    from container.cli.chat_client import ChatClient, ChatFailed, image_part

    client = ChatClient(url or f"http://localhost:{os.environ.get('PORT') or 8080}", api_key)
    is_terminal = sys.stdout.isatty()
    fields = {name: value for name, value in sampling.items() if value is not None}
    try:
        if schema is not None:
            fields["response_format"] = response_format(schema)
        wait_ready(client, lambda text: click.echo(text, err=True, nl=False))
        models = client.models()
        fields.setdefault("model", models[0])
        conversation = Chat(client, fields, write, is_terminal, system=system)
        conversation.images = [image_part(path) for path in images]
        if message is None and not sys.stdin.isatty():
            message = sys.stdin.read()
        if message is None:
            converse(conversation, models)
        else:
            conversation.send(message)
    except ChatFailed as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        sys.exit(130)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def doctor(as_json: bool) -> None:
    """Examine this machine and these settings; exit with 1 if something must be mended."""
    from container.cli.doctor import PROBLEM, examine

    logging.disable(logging.WARNING)  # what the checks find is printed once
    findings = []
    for finding in examine(os.environ):
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    sys.exit(any(finding.state == PROBLEM for finding in findings))


def _print(finding: "Finding") -> None:
    mark = click.style(f"{finding.state:<8}", fg=COLOURS[finding.state])
    click.echo(f"{mark} {finding.subject:<11} {finding.text}")
    if finding.remedy:
        click.echo(f"{'':<21}-> {finding.remedy}")
