"""The commands in the documents' blocks of shell code."""

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "examples" / "README.md",
    ROOT / "benchmarks" / "README.md",
]
ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True, slots=True)
class Command:
    """A command, without variables before it and the comment behind it."""

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {' '.join(self.words)}"

    def of_module(self, module: str) -> tuple[str, ...] | None:
        """Return the arguments of `python -m module`, None for another command."""
        is_python = self.words[0].rpartition("/")[2] in ("python", "python3")
        if is_python and self.words[1:3] == ("-m", module):
            return self.words[3:]
        return None


def documented_commands() -> Iterator[Command]:
    """Yield every command of the documents."""
    for path in DOCUMENTS:
        name = path.relative_to(ROOT).as_posix()
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.S | re.M)
        shell = [code for kind, code in blocks if kind in ("", "bash", "sh")]
        for line in "".join(shell).replace("\\\n", " ").splitlines():
            for words in _split(shlex.split(line, comments=True)):
                yield Command(name, words)


def _split(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield the commands of a line, without the variables before them."""
    command: list[str] = []
    for word in [*words, "&&"]:
        if word == "&&":
            if command:
                yield tuple(itertools.takewhile(lambda word: word != ">", command))
            command = []
        elif command or not ASSIGNMENT.match(word):
            command.append(word)
