"""Load on an endpoint, and what its clients saw: `python -m benchmarks TARGET`.

TARGET is the address of a server with OpenAI's or TGI's API, or the name of a SageMaker endpoint.
With `--compare` it compares two earlier reports. README.md has examples.
"""

import argparse
import datetime
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.endpoint import page
from benchmarks.endpoint.apis import APIS, Options
from benchmarks.endpoint.arrivals import Level
from benchmarks.endpoint.driver import Endpoint, Extent, run_level
from benchmarks.endpoint.outcome import Goal, Outcome, read_goal, summarise
from benchmarks.endpoint.transports import Http, SageMaker, Transport
from benchmarks.endpoint.workload import Prompt, Synthetic, Words, read_file

DETECT_TIMEOUT_S = 20
DEFAULT_REQUESTS = 64


def main(arguments: list[str] | None = None) -> int:
    """Run the levels, or compare two reports; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.compare:
            return _compare(options)
        if not options.target:
            parser.error("give a TARGET, or --compare with two reports")
        return _run(options)
    except (ValueError, OSError, ModuleNotFoundError, httpx.HTTPError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.partition("\n\n")[0]
    )
    add = parser.add_argument
    add("target", nargs="?", metavar="TARGET", help="http(s)://... or a SageMaker endpoint's name")
    group = parser.add_argument_group("arrivals (each value is a level of the report)")
    group.add_argument("--clients", type=_numbers(int), help="closed loop: 1,4,16 clients")
    group.add_argument("--rate", type=_numbers(float), help="Poisson: 0.5,2,8 requests a second")
    group.add_argument("--trace", type=Path, help="a file with the time of each request")
    group.add_argument("--most", type=int, help="with --rate and --trace: most requests at a time")
    group = parser.add_argument_group("requests")
    group.add_argument("--requests", type=int, help=f"of a level; {DEFAULT_REQUESTS} by default")
    group.add_argument("--seconds", type=float, help="a level sends no more requests after that")
    group.add_argument("--warm-up", type=int, default=2, help="requests before, not measured")
    group.add_argument("--data", type=Path, help="prompts: JSON lines of GuideLLM, vLLM, ShareGPT")
    group.add_argument("--prompt-tokens", type=int, default=256, help="of synthetic prompts")
    group.add_argument("--output-tokens", type=int, default=128, help="the most of an answer")
    group.add_argument("--prefix-tokens", type=int, default=0, help="of prefixes that are shared")
    group.add_argument("--prefix-groups", type=int, default=1, help="how many prefixes there are")
    group.add_argument("--tokenizer", type=Path, help="a model's folder, for exact lengths")
    group.add_argument("--seed", type=int, default=0)
    group = parser.add_argument_group("endpoint")
    group.add_argument("--api", choices=[*APIS, "auto"], default="auto")
    group.add_argument("--model", help="the first one that the server lists by default")
    group.add_argument("--region", help="of the SageMaker endpoint")
    group.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
    group.add_argument("--temperature", type=float)
    group.add_argument("--ignore-eos", action="store_true", help="answers have their full length")
    group.add_argument("--body", type=json.loads, default={}, help="more fields, as JSON")
    group.add_argument("--timeout", type=float, default=600, help="seconds for an answer")
    group = parser.add_argument_group("report")
    group.add_argument("--goal", type=_goal, default=Goal(), metavar="first_token=500,whole=9000")
    group.add_argument("--price", type=float, help="dollars an hour of the instance")
    group.add_argument("--label", help="a name of the run, for comparisons")
    group.add_argument("--json", type=Path)
    group.add_argument("--html", type=Path)
    add("--compare", nargs=2, type=Path, metavar=("BEFORE", "AFTER"), help="two reports")
    return parser


def _goal(text: str) -> Goal:
    try:
        return read_goal(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _numbers(kind: type) -> Any:
    def read(text: str) -> list[Any]:
        values = [kind(part) for part in text.split(",")]
        if min(values) <= 0:
            raise argparse.ArgumentTypeError("must be above 0")
        return values

    return read


def _compare(options: argparse.Namespace) -> int:
    before, after = (page.read_result(path) for path in options.compare)
    target = options.html or Path("comparison.html")
    target.write_text(page.comparison(before, after))
    print(f"comparison: {target}")
    return 0


def _run(options: argparse.Namespace) -> int:
    console = Console(highlight=False)
    name, model = _api_and_model(options)
    if options.ignore_eos and name == "generate":
        raise ValueError(
            "--ignore-eos: TGI's API has no such field; take --api chat or completions"
        )
    endpoint = Endpoint(
        _transport(options, APIS[name].path),
        APIS[name](),
        Options(model, options.ignore_eos, options.temperature, _extra(options)),
        options.timeout,
    )
    words = Words(options.tokenizer)
    levels = []
    for level in _levels(options):
        figures = _measure(endpoint, level, words, options)
        levels.append(figures)
        console.print(_line(figures))
    result = _result(options, name, model, levels)
    console.print(_table(levels))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.html:
        options.html.write_text(page.report(result))
        console.print(f"report: {options.html}")
    return 1 if all(level["failed"] == level["requests"] for level in levels) else 0


def _levels(options: argparse.Namespace) -> list[Level]:
    levels = [Level(clients=count) for count in options.clients or []]
    levels += [Level(rate=rate, most=options.most) for rate in options.rate or []]
    if options.trace:
        levels.append(Level(most=options.most))
    return levels or [Level(clients=1)]


def _measure(
    endpoint: Endpoint, level: Level, words: Words, options: argparse.Namespace
) -> dict[str, Any]:
    if options.warm_up:
        warm = _prompts(Level(clients=1), words, options, "warm-up")
        run_level(endpoint, Level(clients=1), warm, Extent(options.warm_up))
    is_trace = level.clients is None and level.rate is None
    count = options.requests
    if count is None and options.seconds is None and not is_trace:
        count = DEFAULT_REQUESTS
    extent = Extent(count, options.seconds)
    outcomes, wall_s = run_level(
        endpoint, level, _prompts(level, words, options, level.name), extent, options.seed
    )
    figures = summarise(outcomes, wall_s, options.goal, options.price)
    return {"name": level.name, "size": level.size} | figures | {"samples": _samples(outcomes)}


def _prompts(
    level: Level, words: Words, options: argparse.Namespace, name: str
) -> Iterator[Prompt]:
    """Return the prompts of a level: those of the trace or the data set, or synthetic ones."""
    is_trace = level.clients is None and level.rate is None
    path = options.trace if is_trace else options.data
    if path is None:
        sizes = (options.prompt_tokens, options.output_tokens, options.prefix_tokens)
        synthetic = Synthetic(*sizes, options.prefix_groups, options.seed)
        yield from synthetic.prompts(words, name)
        return
    prompts = read_file(path, words, output_tokens=options.output_tokens)
    if is_trace:
        yield from sorted(prompts, key=lambda prompt: prompt.at or 0.0)
        return
    while True:
        yield from prompts


def _samples(outcomes: list[Outcome]) -> dict[str, list[float]]:
    """Return the times of each answered request, for the plots."""
    good = [outcome for outcome in outcomes if outcome.is_ok]
    return {
        "due_s": [round(outcome.due_at, 3) for outcome in good],
        "first_token_ms": [round(1000 * outcome.first_token_s, 2) for outcome in good],
        "per_token_ms": [round(1000 * outcome.per_token_s, 3) for outcome in good],
        "whole_ms": [round(1000 * outcome.whole_s, 2) for outcome in good],
    }


def _result(
    options: argparse.Namespace, api: str, model: str, levels: list[dict[str, Any]]
) -> page.Result:
    goal = {name: limit for name, limit in asdict(options.goal).items() if limit is not None}
    return {
        "target": options.target,
        "label": options.label,
        "api": api,
        "model": model,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "workload": _workload(options),
        "goal": goal,
        "price": options.price,
        "levels": levels,
    }


def _workload(options: argparse.Namespace) -> str:
    source = options.trace or options.data
    if source is not None:
        return f"{source.name}, answers of at most {options.output_tokens} tokens by default"
    shared = ""
    if options.prefix_tokens:
        shared = f", behind one of {options.prefix_groups} prefixes of {options.prefix_tokens}"
    exact = "" if options.tokenizer else "about "
    return (
        f"synthetic, {exact}{options.prompt_tokens} tokens{shared}, answers of at most "
        f"{options.output_tokens}"
    )


def _transport(options: argparse.Namespace, path: str) -> Transport:
    if not _is_url(options.target):
        return SageMaker(options.target.removeprefix("sagemaker:"), options.region)
    base = options.target.rstrip("/").removesuffix("/v1")
    return Http(base, path, _headers(options))


def _headers(options: argparse.Namespace) -> dict[str, str]:
    """Return the headers; the key in OPENAI_API_KEY is one of them unless there is another."""
    pairs = (header.partition(":")[::2] for header in options.header)
    headers = {name.strip(): value.strip() for name, value in pairs}
    key = os.environ.get("OPENAI_API_KEY")
    if key and "authorization" not in map(str.lower, headers):
        headers["Authorization"] = f"Bearer {key}"
    return headers


def _extra(options: argparse.Namespace) -> dict[str, Any]:
    if not isinstance(options.body, dict):
        raise ValueError("--body must be a JSON object")
    return options.body


def _api_and_model(options: argparse.Namespace) -> tuple[str, str]:
    """Return the API and the model; `auto` is OpenAI's chat where the server lists models."""
    if not _is_url(options.target):
        return ("chat" if options.api == "auto" else options.api), options.model or ""
    base = options.target.rstrip("/").removesuffix("/v1")
    headers = _headers(options)
    answer = httpx.get(f"{base}/v1/models", headers=headers, timeout=DETECT_TIMEOUT_S)
    models = answer.json().get("data") or [] if answer.status_code == 200 else []
    listed = models[0]["id"] if models else ""
    if options.api == "auto":
        return ("chat" if models else "generate"), options.model or listed
    return options.api, options.model or listed


def _is_url(target: str) -> bool:
    return target.startswith(("http://", "https://"))


def _line(figures: dict[str, Any]) -> str:
    return (
        f"{figures['name']}: {figures['requests']} requests, {figures['failed']} failed, "
        f"{figures['output_tokens_per_s']:.1f} tokens/s in {figures['wall_s']:.1f} s"
    )


def _table(levels: list[dict[str, Any]]) -> Table:
    table = Table(title="times in ms, p50 / p90 / p99", title_justify="left")
    for head in ("level", "tokens/s", "first token", "between tokens", "whole", "goodput"):
        table.add_column(head, justify="left" if head == "level" else "right")
    for level in levels:
        times = [
            " / ".join(f"{level[key][p]:.0f}" for p in page.PERCENTS)
            if level[key]["count"]
            else "-"
            for key in page.TIMES
        ]
        good = level.get("goodput")
        share = f"{good['requests_per_s']:.2f}/s ({100 * good['share']:.0f} %)" if good else "-"
        table.add_row(level["name"], f"{level['output_tokens_per_s']:.1f}", *times, share)
    return table


if __name__ == "__main__":
    sys.exit(main())
