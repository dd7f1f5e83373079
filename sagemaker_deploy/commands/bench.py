"""`bench`: load on an endpoint."""

import dataclasses
import json

import click

from sagemaker_deploy import invoke as calls
from sagemaker_deploy import load
from sagemaker_deploy.aws import Aws
from sagemaker_deploy.commands import options
from sagemaker_deploy.commands.output import print_json, print_table
from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import InvocationFailed
from sagemaker_deploy.plan.requests import component_name

PROMPT = "Explain what a language model is, in some detail."


@click.command()
@options.target_options
@click.option("--clients", default="1,4,16", show_default=True, help="Concurrencies to try.")
@click.option("--requests", default=32, show_default=True, help="Requests at each concurrency.")
@click.option("--prompt", default=PROMPT, help="What each request asks.")
@click.option("--max-tokens", default=64, show_default=True)
@click.option("--whole", is_flag=True, help="InvokeEndpoint, not the stream.")
@click.option("--component", help="Inference component.")
@options.as_json
def bench(
    name: str,
    aws: Aws,
    config: Config | None,
    clients: str,
    requests: int,
    prompt: str,
    max_tokens: int,
    whole: bool,
    component: str | None,
    as_json: bool,
) -> None:
    """Send the same chat from several clients at a time and show latencies and tokens a second.

    Each client waits for its response before it sends the next request. Time to first text is
    measured for streamed responses. The numbers include delays of this machine and its network.
    """
    if component is None and config and config.component and config.name == name:
        component = component_name(config)
    address = calls.Address(name, component)
    chat = calls.messages_body(prompt, None, max_tokens, stream=not whole)
    body = json.dumps(chat).encode()

    def send() -> load.Sample:
        if whole:
            return load.whole(lambda: calls.call(aws, address, body, "application/json").body)
        return load.streamed(lambda: calls.call_stream(aws, address, body, "application/json"))

    if error := send().error:  # also warms the connection up
        raise InvocationFailed(f"the first request failed: {error}")
    summaries = []
    for count in (int(part) for part in clients.split(",")):
        samples, wall_s = load.run(send, count, requests)
        summaries.append(load.summarize(samples, count, wall_s))
        if not as_json:
            click.echo(f"{count} clients, {requests} requests: latency")
            for line in load.histogram(
                [sample.latency_s for sample in samples if not sample.error]
            ):
                click.echo(line)
    if as_json:
        print_json([dataclasses.asdict(summary) for summary in summaries])
        return
    columns = ("Clients", "Failed", "p50 s", "p90 s", "p99 s", "First text p50 s", "Req/s", "Tok/s")
    print_table(f"{name}", columns, [_row(summary) for summary in summaries])


def _row(summary: load.Summary) -> tuple[object, ...]:
    latency = [f"{summary.latency_s.get(key, 0):.3f}" for key in ("p50", "p90", "p99")]
    first = summary.first_text_s.get("p50")
    return (
        summary.clients,
        summary.failed,
        *latency,
        f"{first:.3f}" if first else "-",
        f"{summary.requests_per_s:.2f}",
        f"{summary.tokens_per_s:.1f}",
    )
