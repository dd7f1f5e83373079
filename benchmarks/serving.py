"""Measures the server beside other engines, in one interleaved run.

make bench, or: .venv/bin/python -m benchmarks.serving --levels 1,8 --json result.json
With --model FOLDER it is a model that somebody trained, with its own tokenizer and real text.
README.md tells the method.
"""

import datetime
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks.load import prompts, routes
from benchmarks.load.plan import Match, Model, Plan
from benchmarks.load.rounds import Benchmark
from benchmarks.models import bench_model
from benchmarks.peers import environments
from benchmarks.report import plot, tables
from benchmarks.system import machine, processes

# A cache that the run fills, as the peers have: in a large new one every block is a page that the
# kernel has to clear first, which takes milliseconds a megabyte on a virtual machine.
SMALLEST_CACHE = 16384
USUAL_PEERS = (environments.TRANSFORMERS.name, environments.OPENVINO.name, environments.LLAMA.name)
INT8_PEERS = (environments.LLAMA_Q8.name,)
# What holds all sides to an instruction set: oneDNN's and our limit, and PyTorch's.
ISAS = {
    "avx512_bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "ATEN_CPU_CAPABILITY": "avx512"},
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}
DTYPES = ("auto", "bfloat16", "float16", "float32")


def _levels(_: click.Context, __: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        levels = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter("give numbers of clients, such as 1,8,32") from None
    if min(levels) < 1 or len(set(levels)) < len(levels):
        raise click.BadParameter("numbers of clients are at least 1, and each is given once")
    return levels


def _peers(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(part.strip() for part in value.split(",") if part.strip())
    if unknown := [name for name in names if name not in environments.ALL]:
        raise click.BadParameter(f"{unknown[0]} is none of {', '.join(environments.ALL)}")
    return names


@click.command()
@click.option("--levels", default="1,8,32", callback=_levels, help="Concurrent clients.")
@click.option("--rounds", default=5, type=click.IntRange(1), help="Rounds of each side and level.")
@click.option(
    "--repeats", default=1, type=click.IntRange(0), help="Of a turn that others disturbed."
)
@click.option(
    "--peers",
    "names",
    callback=_peers,
    help=f"Which are measured beside it: of {', '.join(environments.ALL)}.",
    show_default="transformers,openvino,llama.cpp; with --model also its own GGUF, if there is one",
)
@click.option(
    "--model",
    "real_model",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder of a trained model, measured with prompts of English prose.",
)
@click.option(
    "--dtype",
    default="auto",
    type=click.Choice(DTYPES),
    show_default=True,
    help="Of our side, transformers and openvino. auto: bfloat16 where the processor has it.",
)
@click.option("--quantize", help="QUANTIZE of our side in the whole run, such as int8.")
@click.option(
    "--isa",
    type=click.Choice([*ISAS]),
    help="Hold ours, transformers and openvino to these instructions; llama.cpp has no such limit.",
)
@click.option("--no-peer", is_flag=True, help="Measure our side only.")
@click.option("--no-int8", is_flag=True, help="Leave out QUANTIZE=int8 beside 8-bit llama.cpp.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw an SVG here.")
@click.option("--url", help="A server that already runs, instead of one started for this.")
@click.option(
    "--model-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=bench_model.default_folder(),
    help="Folder of the benchmark's model; made if absent.",
    show_default="in the system's folder for temporary files",
)
@click.option("--requests-per-client", type=click.IntRange(1), help="In a round; default 2 to 6.")
@click.option("--prompt-tokens", default=128, type=click.IntRange(1, 2**17))
@click.option("--new-tokens", default=64, type=click.IntRange(2, 1024))
@click.option("--seed", default=0, help="Of the prompts.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all results here."
)
@click.help_option("-h", "--help")
def main(
    names: tuple[str, ...] | None,
    real_model: Path | None,
    dtype: str,
    quantize: str | None,
    isa: str | None,
    no_peer: bool,
    no_int8: bool,
    url: str | None,
    model_dir: Path,
    json_file: Path | None,
    plot_file: Path | None,
    **options: Any,
) -> None:
    """Measure throughput, latency and /ping of the server, beside other engines."""
    processes.unwind_on_signals()
    console = tables.make_console()
    plan = Plan(**options)
    os.environ.update(ISAS.get(isa or "", {}))
    model = _model(real_model, model_dir, dtype)
    if no_peer:
        names = ()
    elif names is None:
        names = _usual_peers(model.folder)
    if isa is not None:
        names = tuple(name for name in names if not name.startswith("llama.cpp"))
        no_int8 = True  # whose peer is llama.cpp
    settings = {
        "DTYPE": model.dtype,
        "MAX_BATCH_TOTAL_TOKENS": str(max(SMALLEST_CACHE, 2 * plan.max_tokens)),
    }
    int8_weights = settings | {"QUANTIZE": "int8"}
    if quantize is not None:
        settings["QUANTIZE"] = quantize
    matches = [Match(quantize or model.dtype, settings, names, plan.levels)]
    if not (no_peer or no_int8 or url or quantize):
        matches.append(Match("int8", int8_weights, INT8_PEERS, plan.levels[:1]))
    try:
        result = _run(plan, matches, console, url=url, model=model, scratch=model_dir)
    except (routes.LoadError, processes.ChildFailed, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2) + "\n")
    if plot_file is not None:
        plot_file.write_text(
            plot.draw(result["matches"][matches[0].name]["levels"], _heading(result))
        )


def _heading(result: dict[str, Any]) -> tuple[str, ...]:
    """Name the processor, the model and the load, for the plot."""
    description, plan = result["machine"], result["plan"]
    return (
        f"{description['cores']} cores of {description['processor']}, {description['capability']}",
        f"{Path(result['model']).name}, {plan['prompt_tokens']} tokens of prompt and "
        f"{plan['new_tokens']} of completion, median of {plan['rounds']} rounds",
    )


def _model(real_model: Path | None, model_dir: Path, dtype: str) -> Model:
    """Choose the model with its prompts; `auto` becomes what the server takes it for."""
    if dtype == "auto":
        dtype = "bfloat16" if machine.describe()["bf16_instructions"] else "float32"
    if real_model is None:
        return Model(model_dir, prompts.MadeUpWords(), routes.GenerateRoute(), dtype)
    folder = real_model.resolve()
    return Model(folder, prompts.Prose(folder), routes.CompletionsRoute(), dtype)


def _usual_peers(folder: Path) -> tuple[str, ...]:
    """Name the peers that are measured unless others are asked for."""
    has_gguf = any(folder.glob("*.gguf"))
    return (*USUAL_PEERS, environments.LLAMA_GGUF.name) if has_gguf else USUAL_PEERS


def _run(
    plan: Plan,
    matches: list[Match],
    console: Console,
    *,
    url: str | None,
    model: Model,
    scratch: Path,
) -> dict[str, Any]:
    description = machine.describe()
    started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    if not bench_model.is_written(model.folder) and not (url and not matches[0].peers):
        console.print(f"Making the model in {model.folder}")
        processes.make_model(model.folder)
    task = environments.Task(model.folder, scratch, model.dtype, plan.max_tokens)
    commands = _commands(matches, task, console)
    results = {
        match.name: _run_match(plan, match, commands, console, url=url, model=model)
        for match in matches
    }
    console.print(tables.machine_line(description))
    return {
        "started_at": started_at,
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "machine": description,
        "model": str(model.folder),
        "plan": asdict(plan),
        "matches": results,
        "load_average_at_end": os.getloadavg(),
    }


def _commands(
    matches: list[Match], task: environments.Task, console: Console
) -> dict[str, list[str]]:
    """Return the command of each peer; all are installed before the first measurement."""
    commands = {}
    for name in dict.fromkeys(name for match in matches for name in match.peers):
        console.print(f"Preparing {name} (the first time, this takes minutes)")
        try:
            commands[name] = environments.ALL[name].command(task)
        except environments.CannotInstall as error:
            console.print(f"[yellow]{name} is left out, as it cannot be installed: {error}")
    return commands


def _run_match(
    plan: Plan,
    match: Match,
    commands: dict[str, list[str]],
    console: Console,
    *,
    url: str | None,
    model: Model,
) -> dict[str, Any]:
    with ExitStack() as children:
        running = {
            name: children.enter_context(processes.running_peer(name, commands[name]))
            for name in match.peers
            if name in commands
        }
        server_pid = None
        if url is None:
            server = processes.running_server(model.folder, match.settings)
            url, server_pid = children.enter_context(server)
        info = processes.get_json(f"{url}/info")
        benchmark = Benchmark(plan, model, url, server_pid, running)
        levels = [benchmark.measure_level(clients, console) for clients in match.levels]
    tables.show(console, match.name, levels)
    return {
        "settings": match.settings,
        "server": info,
        "peers": {name: peer.facts for name, peer in running.items()},
        "levels": [level.as_dict() for level in levels],
    }


if __name__ == "__main__":
    main()
