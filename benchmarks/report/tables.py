"""The result on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report.figures import OURS, Level, Round, median_throughput, spans, summary

# Above these, in cores, the machine was not as quiet as the method asks for.
IDLE_SIDE_LIMIT = 0.03
OTHERS_LIMIT = 0.1
FILE_WIDTH = 140


def make_console() -> Console:
    """A console whose lines stay whole; in a file it is as wide as the table wants to be."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def show(console: Console, match: str, levels: list[Level]) -> None:
    """Print the table, the pings and what disturbed the run."""
    title = f"{match}, whole run; times in ms, p50 / p99"
    table = Table(title=title, title_justify="left")
    for heading in ("clients", "side", "tok/s"):
        table.add_column(heading, justify="left" if heading == "side" else "right", no_wrap=True)
    ratios = ("tok/s: ours / it, median (min to max)", "first token: it / ours")
    for heading in ("first token", "between tokens", *ratios):
        table.add_column(heading, justify="right")
    for level in levels:
        for side, rounds in level.sides.items():
            first = str(level.clients) if side == OURS else ""
            table.add_row(first, side, *_cells(rounds), *_ratios(level, side))
        table.add_section()
    console.print(table)
    for line in [*_pings(levels), *_lengths(levels), *_noise(levels)]:
        console.print(line)


def show_turn(console: Console, clients: int, number: int, turn: dict[str, Round]) -> None:
    """Print one line for each round of a turn."""
    for side, round_ in turn.items():
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
    times = [figures["first_token_ms"], figures["between_tokens_ms"]]
    pairs = [f"{time['p50']:.0f} / {time['p99']:.0f}" for time in times]
    return [f"{median_throughput(rounds):.1f}", *pairs]


def _ratios(level: Level, side: str) -> list[str]:
    if side == OURS:
        return ["", ""]
    both = [spans(level.ratios(side)), spans(level.first_token_ratios(side))]
    return [f"{span['median']:.2f} ({span['min']:.2f} to {span['max']:.2f})" for span in both]


def _pings(levels: list[Level]) -> list[str]:
    lines = []
    for level in levels:
        figures = summary(level.sides[OURS])
        pings, failed = figures["ping_ms"], figures["failed_pings"]
        if pings is not None:
            lines.append(
                f"/ping while {level.clients} clients stream: p50 {pings['p50']:.1f} ms, "
                f"p99 {pings['p99']:.1f} ms, max {pings['max']:.1f} ms "
                f"({pings['count']} answered with 200, {failed} not)"
            )
    return lines


def _lengths(levels: list[Level]) -> list[str]:
    figures = [summary(rounds) for level in levels for rounds in level.sides.values()]
    prompts = sorted({count for figure in figures for count in figure["prompt_tokens"]})
    new = sorted({count for figure in figures for count in figure["new_tokens"]})
    return [f"Tokens of a prompt, as the sides count them: {prompts}; of a completion: {new}"]


def _noise(levels: list[Level]) -> list[str]:
    rounds = [(side, one) for level in levels for side, all_ in level.sides.items() for one in all_]
    load = max(round_.cores["load"] for side, round_ in rounds if side == OURS)
    lines = [f"Cores kept busy, at most: load generator {load:.2f}"]
    idle = [
        used
        for side, round_ in rounds
        for name, used in round_.cores.items()
        if name not in (side, "load", "others")
    ]
    if idle:
        lines[0] += f", a side that should be idle {max(idle):.3f}"
        if max(idle) > IDLE_SIDE_LIMIT:
            lines.append("[yellow]An idle side was not idle: the others' figures are too low.")
    others = [round_.cores["others"] for _, round_ in rounds if "others" in round_.cores]
    if others:
        lines[0] += f", other processes {max(others):.2f}"
    repeated = sum(level.repeated for level in levels)
    if repeated:
        lines.append(f"Turns left out and repeated, as others were busy: {repeated}")
    if any(is_disturbed(round_) for _, round_ in rounds):
        lines.append("[yellow]Other processes were busy: do not compare these with other runs.")
    return lines


def machine_line(machine: dict[str, Any]) -> str:
    """Return a line that describes the machine."""
    bf16 = "with" if machine["bf16_instructions"] else "without"
    return (
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['capability']} "
        f"{bf16} bfloat16 instructions, torch {machine['torch']} with "
        f"{machine['torch_threads']} threads"
    )
