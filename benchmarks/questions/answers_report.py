"""The scores of answers.py on a terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.questions.agreement import Agreement, score_interval


def show(console: Console, result: dict[str, Any]) -> None:
    """Print scores by category; with a reference also agreement, noise and the verdict."""
    scores = {name: Agreement(**counts) for name, counts in result["scores"].items()}
    settings = ", ".join(f"{name}={value}" for name, value in result["settings"].items())
    title = f"{settings}; {result['seconds']} s for {scores['all'].num_questions} questions"
    table = Table(title=title, title_justify="left")
    table.add_column("questions")
    headings = ["ours"]
    if "reference" in result:
        headings += ["reference", "same verdict", "identical text", "only ours / only reference"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, score in scores.items():
        table.add_row(name, *_cells(score)[: len(headings)])
    console.print(table)
    total = scores["all"]
    if "reference" in result:
        console.print(_comparison(total))
    else:
        low, high = score_interval(total.num_right, total.num_questions)
        console.print(f"Score {total.score:.3f}; 95 % interval {low:.3f} to {high:.3f}")


def _cells(score: Agreement) -> list[str]:
    return [
        f"{score.num_right} of {score.num_questions}",
        f"{score.num_reference_right} of {score.num_questions}",
        f"{score.same_verdict:.3f}",
        f"{score.identical:.3f}",
        f"{score.only_ours} / {score.only_reference}",
    ]


def _comparison(total: Agreement) -> str:
    low, high = total.difference
    return (
        f"Ours - reference: {total.score - total.reference_score:+.3f} "
        f"(95 % interval {low:+.3f} to {high:+.3f}; McNemar p = {total.p_value:.3f})\n"
        f"Verdict: {total.verdict}"
    )
