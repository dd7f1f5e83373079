"""The result on a terminal."""

import statistics
from typing import Any

from figures import Level, Round, median_throughput, summary
from rich.console import Console
from rich.table import Table

# Above these, in cores, the machine was not as quiet as the method asks for.
IDLE_SIDE_LIMIT = 0.03
OTHERS_LIMIT = 0.1
FILE_WIDTH = 120
SIDES = ("ours", "peer")


def make_console() -> Console:
    """A console whose lines stay whole; in a file it is as wide as the table wants to be."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def show(console: Console, levels: list[Level], machine: dict[str, Any]) -> None:
    """Print the table, the pings and what disturbed the run."""
    table = Table(title="Whole run; times in ms, p50 / p99", title_justify="left")
    for heading in ("clients", "side", "tok/s"):
        table.add_column(heading, justify="left" if heading == "side" else "right", no_wrap=True)
    for heading in ("rounds", "first token", "between tokens", "ours / peer"):
        table.add_column(heading, justify="right")
    for level in levels:
        table.add_row(str(level.clients), "ours", *_cells(level.ours), _ratios(level))
        if level.peer:
            table.add_row("", "peer", *_cells(level.peer), "")
        table.add_section()
    console.print(table)
    for line in [*_pings(levels), *_lengths(levels), *_noise(levels), _machine(machine)]:
        console.print(line)


def show_pair(console: Console, clients: int, number: int, pair: list[Round]) -> None:
    """Print one line for each of a pair of finished rounds."""
    for side, round_ in zip(SIDES, pair, strict=False):
        cores = ", ".join(f"{name} {used:.2f}" for name, used in round_.cores.items())
        console.print(
            f"{clients:>3} clients, {side}, round {number}: {round_.tokens_per_s:6.1f} tok/s "
            f"({round_.tokens} tokens, {round_.wall_s:.1f} s; cores: {cores})"
            + (" [yellow]disturbed" if is_disturbed(round_) else "")
        )


def is_disturbed(round_: Round) -> bool:
    """Whether other processes used the processors noticeably."""
    return round_.cores.get("others", 0.0) > OTHERS_LIMIT


def _cells(rounds: list[Round]) -> list[str]:
    figures = summary(rounds)
    each = " ".join(f"{round_.tokens_per_s:.0f}" for round_ in rounds)
    times = [figures["first_token_ms"], figures["between_tokens_ms"]]
    pairs = [f"{time['p50']:.0f} / {time['p99']:.0f}" for time in times]
    return [f"{median_throughput(rounds):.1f}", each, *pairs]


def _ratios(level: Level) -> str:
    if not level.ratios:
        return ""
    each = " ".join(f"{ratio:.2f}" for ratio in level.ratios)
    return f"{statistics.median(level.ratios):.2f} ({each})"


def _pings(levels: list[Level]) -> list[str]:
    lines = []
    for level in levels:
        figures = summary(level.ours)
        pings, failed = figures["ping_ms"], figures["failed_pings"]
        if pings is not None:
            lines.append(
                f"/ping while {level.clients} clients stream: p50 {pings['p50']:.1f} ms, "
                f"p99 {pings['p99']:.1f} ms, max {pings['max']:.1f} ms "
                f"({pings['count']} answered with 200, {failed} not)"
            )
    return lines


def _lengths(levels: list[Level]) -> list[str]:
    figures = [summary(side) for level in levels for side in (level.ours, level.peer) if side]
    prompts = sorted({count for one in figures for count in one["prompt_tokens"]})
    new = sorted({count for one in figures for count in one["new_tokens"]})
    return [f"Tokens of a prompt, as the sides count them: {prompts}; of a completion: {new}"]


def _noise(levels: list[Level]) -> list[str]:
    ours = [round_ for level in levels for round_ in level.ours]
    peer = [round_ for level in levels for round_ in level.peer]
    load = max(round_.cores["load"] for round_ in ours)
    lines = [f"Cores kept busy, at most: load generator {load:.2f}"]
    if "server" in ours[0].cores and peer:
        idle = [round_.cores["peer"] for round_ in ours]
        idle += [round_.cores["server"] for round_ in peer]
        lines[0] += f", the side that should be idle {max(idle):.3f}"
        if max(idle) > IDLE_SIDE_LIMIT:
            lines.append("[yellow]The idle side was not idle: the other's figures are too low.")
    others = [round_.cores["others"] for round_ in ours + peer if "others" in round_.cores]
    if others:
        lines[0] += f", other processes {max(others):.2f}"
    repeated = sum(level.repeated for level in levels)
    if repeated:
        lines.append(f"Pairs of rounds left out and repeated, as others were busy: {repeated}")
    if any(map(is_disturbed, ours + peer)):
        lines.append("[yellow]Other processes were busy: do not compare these with other runs.")
    return lines


def _machine(machine: dict[str, Any]) -> str:
    bf16 = "with" if machine["bf16_instructions"] else "without"
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['capability']} "
        f"{bf16} bfloat16 instructions, torch {machine['torch']} with "
        f"{machine['torch_threads']} threads"
    )
