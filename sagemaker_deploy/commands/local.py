"""`local`: a SageMaker endpoint on this machine."""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.errors import ConfigError, EndpointFailed, MissingTool
from sagemaker_deploy.local.containers import launch
from sagemaker_deploy.local.containers.fleet import Launch
from sagemaker_deploy.local.containers.storage import Storage
from sagemaker_deploy.local.control_plane.control import wait_in_service
from sagemaker_deploy.plan.requests import DEADLINES

if TYPE_CHECKING:
    from sagemaker_deploy.local.server import LocalSageMaker

DEFAULT_PORT = 8070
# Versions 2 and 3 of the SageMaker SDK read this file, and otherwise send telemetry over HTTPS.
SDK_CONFIG = {
    "SchemaVersion": "1.0",
    "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}},
}
IMAGE_WITHOUT_ENGINE = "local/server-process"


@click.command()
@click.option("--model", help="Hub id or folder (HF_MODEL_ID). Without it no endpoint is made.")
@click.option("--model-data", help="s3://... or file:///... of a model.tar.gz or a folder.")
@click.option("--endpoint", default="local", show_default=True, help="Name of the endpoint.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Variable for the container.")
@click.option("--port", type=click.IntRange(0, 65535),
              help=f"{DEFAULT_PORT}, or a free one if that is taken; 0: a free one.")  # fmt: skip
@click.option("--image", help="Run this image under docker or podman, not the server's process.")
@click.option("--engine", help="docker or podman; without it, whichever is installed.")
@click.option("--server-command", help="Command of the container's server, instead of this one.")
@click.option("--region", default="us-east-1", show_default=True)
@click.option("--moto", is_flag=True, help="Also imitate S3, IAM, STS, ... with moto.")
@click.option("--logs", type=click.Path(path_type=Path), help="Folder for the containers' logs.")
@click.option("--json", "as_json", is_flag=True, help="Say where it listens as one JSON line.")
@click.option("--verbose", is_flag=True, help="Log every request.")
def local(
    model: str | None,
    model_data: str | None,
    endpoint: str,
    env: tuple[str, ...],
    port: int | None,
    image: str | None,
    engine: str | None,
    server_command: str | None,
    region: str,
    moto: bool,
    logs: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Serve SageMaker's API on this machine, in front of the container's server.

    \b
      sagemaker_deploy local --model examples/demo-model
      export AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=http://127.0.0.1:8070
      export AWS_ENDPOINT_URL_SAGEMAKER=http://127.0.0.1:8070

    Then boto3, the SageMaker SDK, LangChain and LiteLLM call it as they call AWS. Limits are the
    service's: 25 MB, 60 seconds, 8 minutes for a stream; a 4xx or 5xx comes back as ModelError.
    It starts the server as a process of this machine, or, with --image, the image.
    """
    from sagemaker_deploy.local.server import LocalSageMaker  # Flask, which other commands need not

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    storage = Storage(lambda: Aws(region))
    log_dir = logs or Path(tempfile.mkdtemp(prefix="sagemaker-local-logs-"))
    server = LocalSageMaker(
        _launcher(image, engine, server_command), storage, log_dir, region=region
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    with _moto(moto) as others:
        url = _listen(server, port)
        try:
            if model or model_data:
                _make_endpoint(server, endpoint, model, model_data, options.pairs("--env", env))
            others = {**others, **sdk_variables(log_dir)}
            _announce(url, others, endpoint if model or model_data else None, log_dir, as_json)
            threading.Event().wait()
        finally:
            server.stop()


def _listen(server: "LocalSageMaker", port: int | None) -> str:
    """Listen on the chosen port, or on the default one, or else on a free one."""
    try:
        return server.start(port=DEFAULT_PORT if port is None else port)
    except (OSError, SystemExit) as error:  # werkzeug exits when a port is taken
        if port is not None:
            raise ConfigError([f"--port {port}: cannot listen there"]) from error
    click.echo(f"Port {DEFAULT_PORT} is taken, so another is used.", err=True)
    return server.start(port=0)


def _leave(*_: object) -> None:
    """End the command at any point; its containers are stopped on exit."""
    sys.exit(0)


def _launcher(image: str | None, engine: str | None, server_command: str | None) -> Launch:
    if image:
        tool = launch.container_tool(engine)
        return lambda _image, variables, mounts, port: launch.image_run(
            tool, image, variables, mounts, port
        )
    command = server_command.split() if server_command else launch.default_server()
    return lambda _image, variables, mounts, port: launch.server_process(
        command, variables, mounts, port
    )


def _make_endpoint(
    server: "LocalSageMaker",
    name: str,
    model: str | None,
    model_data: str | None,
    variables: dict[str, str],
) -> None:
    if model:
        folder = Path(model)
        variables = variables | {"HF_MODEL_ID": str(folder.resolve()) if folder.exists() else model}
    definition: dict[str, object] = {
        "Image": IMAGE_WITHOUT_ENGINE,
        "Environment": DEADLINES | variables,
    }
    if model_data and model_data.endswith(".tar.gz"):
        definition["ModelDataUrl"] = model_data
    elif model_data:
        source = {"S3Uri": model_data, "S3DataType": "S3Prefix", "CompressionType": "None"}
        definition["ModelDataSource"] = {"S3DataSource": source}
    variant = {"VariantName": "AllTraffic", "ModelName": name, "InitialInstanceCount": 1}
    variants = [variant | {"InstanceType": "ml.m5.xlarge"}]
    act = server.control.act
    act("CreateModel", {"ModelName": name, "PrimaryContainer": definition})
    act("CreateEndpointConfig", {"EndpointConfigName": name, "ProductionVariants": variants})
    act("CreateEndpoint", {"EndpointName": name, "EndpointConfigName": name})
    if reason := wait_in_service(server.control, name):
        raise EndpointFailed(f"endpoint {name}: {reason}")


@contextmanager
def _moto(is_enabled: bool) -> Iterator[Mapping[str, str]]:
    if not is_enabled:
        yield {}
        return
    try:
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        hint = "pip install 'moto[server]', or leave --moto out"
        raise MissingTool("moto is not installed", hint=hint) from error
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    url = f"http://{host}:{port}"
    os.environ["AWS_ENDPOINT_URL"] = url
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ.setdefault(name, "local")
    try:
        yield {"AWS_ENDPOINT_URL": url}
    finally:
        moto.stop()


def sdk_variables(folder: Path) -> dict[str, str]:
    """Return variables that keep the SageMaker SDK from calling others; writes one file.

    Version 3 asks IAM whether a role may do its work, unless SAGEMAKER_VALIDATE_ROLE is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sagemaker-sdk.yaml"
    path.write_text(yaml.safe_dump(SDK_CONFIG, sort_keys=False))
    return {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(path), "SAGEMAKER_VALIDATE_ROLE": "false"}


def _announce(
    url: str, others: Mapping[str, str], endpoint: str | None, log_dir: Path, as_json: bool
) -> None:
    variables = {"AWS_ENDPOINT_URL_SAGEMAKER": url, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": url}
    variables |= others
    if as_json:
        line = {"url": url, "endpoint": endpoint, "logs": str(log_dir), "environment": variables}
        click.echo(json.dumps(line))
        return
    click.echo(f"SageMaker's API is on {url}; the containers' logs are in {log_dir}")
    for name, value in variables.items():
        click.echo(f"  export {name}={value}")
    if endpoint:
        body = '{"messages": [{"role": "user", "content": "What is deep learning?"}]}'
        click.echo(
            f"Endpoint {endpoint} is in service. With those variables set:\n"
            f"  aws sagemaker-runtime invoke-endpoint --endpoint-name {endpoint} "
            "--cli-binary-format raw-in-base64-out --content-type application/json "
            f"--body '{body}' /dev/stdout"
        )
    click.echo("Press Ctrl-C to stop.")
