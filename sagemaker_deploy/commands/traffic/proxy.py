"""`proxy`: OpenAI's, Anthropic's and TGI's APIs in front of SageMaker endpoints."""

import asyncio
import json
import logging
import signal
from pathlib import Path

import click

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.errors import ConfigError, MissingTool
from sagemaker_deploy.proxy import targets
from sagemaker_deploy.proxy.targets import ContainerKind

DEFAULT_PORT = 8090
KINDS = [kind.value for kind in ContainerKind]


@click.command()
@click.argument("models", nargs=-1, metavar="[NAME=]ENDPOINT[/COMPONENT]...")
@click.option("--models", "path", type=click.Path(path_type=Path),
              help="YAML or TOML file with `models:` and `default:`.")  # fmt: skip
@click.option("--container", type=click.Choice(KINDS), default="auto", show_default=True,
              help="Whose image runs behind these endpoints; auto: ask it once.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True,
              help="0: a free one.")  # fmt: skip
@click.option("--keys", type=click.Path(path_type=Path),
              help="File of lines NAME=KEY: only these keys are answered.")  # fmt: skip
@click.option("--retries", default=5, show_default=True, type=click.IntRange(0, 100),
              help="Most retries of a request that is throttled or gets no answer.")  # fmt: skip
@click.option("--retry-share", default=0.2, show_default=True, type=click.FloatRange(0, 1),
              help="Most retries as a share of all requests.")  # fmt: skip
@click.option("--capacity-wait", default=900, show_default=True, type=click.FloatRange(0),
              help="Seconds that a request waits for a first copy (scale from zero).")  # fmt: skip
@click.option("--record", type=click.Path(path_type=Path),
              help="Append requests and answers to this file, for `replay`.")  # fmt: skip
@options.region
@options.profile
@click.option("--json", "as_json", is_flag=True, help="Say where it listens as one JSON line.")
def proxy(
    models: tuple[str, ...],
    path: Path | None,
    container: str,
    host: str,
    port: int,
    keys: Path | None,
    retries: int,
    retry_share: float,
    capacity_wait: float,
    record: Path | None,
    region: str | None,
    profile: str | None,
    as_json: bool,
) -> None:
    """Serve OpenAI's, Anthropic's and TGI's APIs here, in front of SageMaker endpoints.

    \b
      sagemaker_deploy proxy chat
      OPENAI_BASE_URL=http://127.0.0.1:8090/v1 OPENAI_API_KEY=- your-program

    Requests are signed with your AWS credentials. Answers are streamed underneath, so that whole
    answers may take 8 minutes instead of 60 seconds.
    """
    try:
        from sagemaker_deploy.proxy import keys as key_files
        from sagemaker_deploy.proxy import serve
        from sagemaker_deploy.proxy.runtime.retries import RetrySettings
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sagemaker_deploy"):
            raise
        hint = "pip install -e '.[deploy,proxy]'"
        raise MissingTool(f"{error.name} is not installed", hint=hint) from error
    chosen = targets.load(path, models, ContainerKind(container))
    known_keys = key_files.read_keys(keys)
    key_files.check_host(host, known_keys)
    settings = serve.ProxySettings(
        host,
        port,
        known_keys,
        RetrySettings(most=retries, share=retry_share, capacity_wait_s=capacity_wait),
        record=record,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    async def run() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await serve.serve(
            chosen,
            Aws(region, profile),
            settings,
            stop,
            lambda url: _announce(url, list(chosen.models), as_json),
        )

    try:
        asyncio.run(run())
    except OSError as error:
        raise ConfigError([f"--host {host} --port {port}: cannot listen there: {error}"]) from error


def _announce(url: str, names: list[str], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"url": url, "models": names}))
        return
    click.echo(f"OpenAI's API: {url}/v1; Anthropic's and TGI's: {url}")
    click.echo(f"Models: {', '.join(names)}. Press Ctrl-C to stop.")
