"""Asks 200 questions with automatic checkers, to judge a model, a number format or a new path.

.venv/bin/python -m benchmarks.answers --model FOLDER --reference
Exits with 1 if the answers are worse than those they are compared with. README.md has the method.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks.questions import agreement, answers_report, checkers
from benchmarks.report import tables
from benchmarks.system import machine, processes

HERE = Path(__file__).resolve().parent
QUESTIONS = HERE / "questions" / "questions.jsonl"
REFERENCE = HERE / "questions" / "answer_reference.py"
CONCURRENCY = 8
TIMEOUT_S = 600.0
DTYPES = ("auto", "bfloat16", "float16", "float32")

Question = dict[str, Any]


def read_questions() -> list[Question]:
    """Read the questions with their checks."""
    return [json.loads(line) for line in QUESTIONS.read_text().splitlines()]


def ask(url: str, question: Question) -> str:
    """Ask one question over HTTP, greedily."""
    body = {
        "messages": [{"role": "user", "content": question["prompt"]}],
        "max_tokens": question["max_tokens"],
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        message: dict[str, Any] = json.load(response)["choices"][0]["message"]
    return message["content"] or ""


def ask_all(url: str, questions: list[Question]) -> list[str]:
    """Ask all questions, CONCURRENCY at a time."""
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(lambda question: ask(url, question), questions))


def ask_reference(model: Path, dtype: str, batch: int, questions: list[Question]) -> list[str]:
    """Let transformers answer all questions, in another process."""
    script = [sys.executable, str(REFERENCE), str(model), dtype, str(batch)]
    process = subprocess.run(
        script, input=json.dumps(questions), stdout=subprocess.PIPE, text=True, check=True
    )
    texts: list[str] = json.loads(process.stdout)
    return texts


def resolve_dtype(dtype: str) -> str:
    """Return the number format that `auto` means on this processor, as the server chooses it."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if machine.describe()["bf16_instructions"] else "float32"


@click.command()
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--url", help="A server that already runs, instead of one started for this.")
@click.option("--dtype", default="auto", type=click.Choice(DTYPES), show_default=True)
@click.option("--quantize", help="QUANTIZE of the server, such as int8.")
@click.option("--kv-cache-dtype", help="KV_CACHE_DTYPE of the server, such as fp8_e4m3fn.")
@click.option("--reference", is_flag=True, help="Compare with transformers on the same weights.")
@click.option(
    "--reference-batch",
    default=CONCURRENCY,
    type=click.IntRange(1),
    show_default=True,
    help="Questions that transformers answers at a time, padded on the left.",
)
@click.option(
    "--baseline",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare with the answers of an earlier run's --json.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write answers here.")
@click.help_option("-h", "--help")
def main(
    model: Path | None,
    url: str | None,
    dtype: str,
    quantize: str | None,
    kv_cache_dtype: str | None,
    reference: bool,
    reference_batch: int,
    baseline: Path | None,
    json_file: Path | None,
) -> None:
    """Score a model's answers, and compare them with transformers' or with an earlier run's."""
    if model is None and (url is None or reference):
        raise click.UsageError("--model is needed, unless --url is measured without --reference")
    if reference and baseline:
        raise click.UsageError("--reference and --baseline exclude each other")
    processes.unwind_on_signals()
    console = tables.make_console()
    questions = read_questions()
    dtype = resolve_dtype(dtype)
    options = {"QUANTIZE": quantize, "KV_CACHE_DTYPE": kv_cache_dtype}
    settings = {"DTYPE": dtype} | {name: value for name, value in options.items() if value}
    try:
        result = _ask_server(url, model, settings, questions)
    except (processes.ChildFailed, OSError) as error:
        raise click.ClickException(str(error)) from error
    if reference and model is not None:
        console.print(f"Asking transformers in {dtype} (minutes)")
        result["reference"] = ask_reference(model, dtype, reference_batch, questions)
    elif baseline:
        result["reference"] = _read_baseline(baseline, questions)
    verdict = _judge(result, questions)
    answers_report.show(console, result)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    sys.exit(verdict == agreement.WORSE)


def _ask_server(
    url: str | None, model: Path | None, settings: dict[str, str], questions: list[Question]
) -> dict[str, Any]:
    with ExitStack() as children:
        if url is None:
            assert model is not None
            server = processes.running_server(model.resolve(), settings)
            url, _ = children.enter_context(server)
        info = processes.get_json(f"{url}/info")
        started = time.perf_counter()
        texts = ask_all(url, questions)
    return {
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "settings": settings,
        "server": info,
        "machine": machine.describe(),
        "load_average": os.getloadavg(),
        "seconds": round(time.perf_counter() - started, 1),
        "ids": [question["id"] for question in questions],
        "ours": texts,
    }


def _read_baseline(file: Path, questions: list[Question]) -> list[str]:
    earlier = json.loads(file.read_text())
    if earlier["ids"] != [question["id"] for question in questions]:
        raise click.ClickException(f"{file}: is of other questions than {QUESTIONS}")
    texts: list[str] = earlier["ours"]
    return texts


def _judge(result: dict[str, Any], questions: list[Question]) -> str | None:
    """Check all answers and add scores to the result; return the verdict of a comparison."""
    checks = [question["check"] for question in questions]
    right = list(map(checkers.is_right, checks, result["ours"]))
    result["right"] = right
    texts = result.get("reference", result["ours"])
    reference = list(map(checkers.is_right, checks, texts))
    identical = [ours == theirs for ours, theirs in zip(result["ours"], texts, strict=True)]
    result["scores"] = {}
    for category in [*dict.fromkeys(question["category"] for question in questions), "all"]:
        rows = [i for i, q in enumerate(questions) if category in (q["category"], "all")]
        found = agreement.compare(
            *([flags[i] for i in rows] for flags in (right, reference, identical))
        )
        result["scores"][category] = asdict(found)
    if "reference" not in result:
        return None
    result["reference_right"] = reference
    result["verdict"] = found.verdict
    return found.verdict


if __name__ == "__main__":
    main()
