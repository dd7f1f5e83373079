"""The marks around a model's reasoning and its content."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The marks around a model's reasoning."""

    open: str
    close: str


@dataclass(frozen=True, slots=True)
class ContentMarks:
    """The marks around content, of models that mark it, too."""

    open: str
    close: str


REASONINGS = [
    Reasoning("<think>", "</think>"),
    Reasoning("[THINK]", "[/THINK]"),
    Reasoning("<seed:think>", "</seed:think>"),
]


def recognise_reasoning(template: str) -> Reasoning | None:
    """Find the reasoning marks that a chat template uses; None if it uses none."""
    return next((reasoning for reasoning in REASONINGS if reasoning.close in template), None)
