"""`batch` and `async`: calls whose responses go to S3."""

import json
import time
from pathlib import Path
from typing import Any

import click

from sagemaker_deploy import account, batch_results
from sagemaker_deploy import invoke as calls
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import Progress, print_json
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError, EndpointFailed, InvocationFailed, NotFound
from sagemaker_deploy.execute import Executor
from sagemaker_deploy.plan import changes
from sagemaker_deploy.plan import deploy as deployment
from sagemaker_deploy.plan.requests import artifact_prefix
from sagemaker_deploy.plan.steps import Plan

INLINE_BYTES = 128_000


@click.command()
@options.config_options
@click.option("--input", "source", required=True, help="JSON Lines: a file here, or s3://...")
@click.option("--output", help="s3://... for the answers; else beside the input.")
@click.option("--save", type=click.Path(path_type=Path), help="Also write the answers here.")
@click.option("--concurrency", type=click.IntRange(1), help="Bodies at a time.")
@click.option("--single", is_flag=True, help="One line a body; else as many as 6 MB hold.")
@click.option("--poll", default=10.0, show_default=True, help="Seconds between looks at AWS.")
@options.as_json
def batch(
    config: Config,
    source: str,
    output: str | None,
    save: Path | None,
    concurrency: int | None,
    single: bool,
    poll: float,
    as_json: bool,
) -> None:
    """Run a transform job over every line of a JSON Lines file, and wait for the result.

    Each line is a body of /invocations; the responses are in the same order, one per line, with an
    error object for a bad line. Exits with 7 if there is any. Uses the configuration's model and
    creates it if necessary. Transform jobs do not support uncompressed model data.
    """
    aws = options.aws_of(config)
    job = f"{config.name}-{int(time.time())}"
    url = source if source.startswith("s3://") else _upload(aws, config, Path(source), job)
    # Next to the input, never below it, so that responses do not become input.
    output = output or f"{url.rstrip('/').rpartition('/')[0]}{deployment.RESPONSES}{job}"
    account_state = account.gather(aws, config)
    _, model = deployment.model_request(config, account_state)
    wishes: dict[str, Any] = {"BatchStrategy": "SingleRecord" if single else "MultiRecord"}
    if concurrency:
        wishes["MaxConcurrentTransforms"] = concurrency
    steps = deployment.make_model(config, account_state)
    steps.append(changes.transform(config, job, model["ModelName"], url, output, wishes))
    Executor(aws, Progress(), poll).apply(Plan(config.name, tuple(steps)))
    if save and not source.endswith("/"):
        bucket, _, key = _split(f"{output}/{url.rpartition('/')[2]}.out")
        aws.download(bucket, key, save)
    count = batch_results.count(aws, output)
    if as_json:
        print_json({"job": job, "output": output, "lines": count.lines, "errors": count.errors})
    else:
        click.echo(f"{job} is done; {count.lines} answers are in {save or output}")
    if count.errors:
        raise InvocationFailed(
            f"{count.errors} of {count.lines} answers are errors; the first is line "
            f"{count.first_line} of {count.first_object}: {count.first_error}"
        )


@click.command("async")
@click.argument("name")
@click.argument("prompt", required=False)
@click.option("--file", type=click.Path(path_type=Path), help="File with the whole body.")
@click.option("--location", help="Body that is on S3 already.")
@click.option("--max-tokens", type=int, help="Most tokens to generate.")
@click.option("--timeout", default=900, show_default=True, help="Seconds that the model may take.")
@click.option("--no-wait", is_flag=True, help="Print where the answer will be, and leave.")
@click.option("--poll", default=2.0, show_default=True, help="Seconds between looks at S3.")
@options.region
@options.profile
def async_call(
    name: str,
    prompt: str | None,
    file: Path | None,
    location: str | None,
    max_tokens: int | None,
    timeout: int,
    no_wait: bool,
    poll: float,
    region: str | None,
    profile: str | None,
) -> None:
    """Call an asynchronous endpoint and wait for the response on S3.

    For responses that take longer than 60 seconds, up to an hour. The call can include a body of
    up to 128,000 bytes; larger ones must be on S3 (--location).
    """
    if sum(option is not None for option in (prompt, file, location)) != 1:
        raise ConfigError(["give one of PROMPT, --file and --location"])
    aws = Aws(region, profile)
    params: dict[str, Any] = {
        "EndpointName": name,
        "ContentType": "application/json",
        "InvocationTimeoutSeconds": timeout,
    }
    if location:
        params["InputLocation"] = location
    else:
        params["Body"] = _inline(prompt, file, max_tokens)
    result = aws.call("sagemaker-runtime", "invoke_endpoint_async", **params)
    if no_wait:
        print_json(
            {key: result.get(key) for key in ("InferenceId", "OutputLocation", "FailureLocation")}
        )
        return
    answer = _await(aws, result, timeout, poll)
    click.echo(calls.text_of(answer) or answer.decode(errors="replace"))


def _await(aws: Aws, result: dict[str, Any], timeout_s: int, poll_s: float) -> bytes:
    deadline = time.monotonic() + timeout_s + 60
    while time.monotonic() < deadline:
        for key, has_failed in (("OutputLocation", False), ("FailureLocation", True)):
            data = _object(aws, result[key]) if result.get(key) else None
            if data is not None and has_failed:
                raise InvocationFailed(data.decode(errors="replace"))
            if data is not None:
                return data
        time.sleep(poll_s)
    raise EndpointFailed(f"no answer at {result['OutputLocation']} after {timeout_s} s")


def _split(url: str) -> tuple[str, str, str]:
    return url.removeprefix("s3://").partition("/")


def _object(aws: Aws, url: str) -> bytes | None:
    bucket, _, key = _split(url)
    try:
        return bytes(aws.call("s3", "get_object", Bucket=bucket, Key=key)["Body"].read())
    except NotFound:
        return None


def _inline(prompt: str | None, file: Path | None, max_tokens: int | None) -> bytes:
    if file is not None:
        body = file.read_bytes() if file.is_file() else None
        if body is None:
            raise ConfigError([f"--file {file}: no such file"])
    else:
        chat = calls.messages_body(prompt or "", None, max_tokens, stream=False)
        body = json.dumps(chat).encode()
    if len(body) > INLINE_BYTES:
        raise ConfigError([f"the body has {len(body)} bytes; over {INLINE_BYTES} use --location"])
    return body


def _upload(aws: Aws, config: Config, file: Path, job: str) -> str:
    if not file.is_file():
        raise ConfigError([f"--input {file}: no such file"])
    if not config.bucket:
        raise ConfigError(["bucket: needed to upload the input; or put it on S3 yourself"])
    key = f"{artifact_prefix(config.name)}batch/{job}/{file.name}"
    aws.upload(file, config.bucket, key)
    return f"s3://{config.bucket}/{key}"
