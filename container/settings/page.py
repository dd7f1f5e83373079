"""Renders docs/configuration.md from the settings and the list of TGI's variables."""

from container.settings.field import SettingRow
from container.settings.settings import REFUSED, Settings, describe
from container.settings.tgi import DEFAULTS, WITHOUT_EFFECT


def markdown_page() -> str:
    """Render the page."""
    lines = [
        "# Configuration",
        "",
        "On a real-time SageMaker endpoint set `REQUEST_DEADLINE=55` and "
        "`REQUEST_DEADLINE_STREAMED=475`. SageMaker cuts a whole answer at 60 s and a stream at 8 "
        "minutes, and then the whole answer is lost. With deadlines your client gets the text so "
        "far, with finish reason `length` and a mark ([api.md](api.md#deadlines)). "
        "`sagemaker_deploy` sets both for you. They are off by default, since asynchronous "
        "endpoints and batch transform jobs have no such limit and use the same route.",
        "",
        "Set environment variables; `python -m container settings` prints the values in force. An "
        "empty variable counts as unset. The column TGI has the default of "
        "text-generation-inference for the variables that its launcher knows. `make docs` writes "
        "this page.",
        "",
        "| Variable | Also read as | Default | TGI | Meaning |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(row) for row in describe(Settings())]
    lines += [
        "",
        "huggingface_hub itself reads `HF_HOME`, `HF_HUB_CACHE` (or `HUGGINGFACE_HUB_CACHE`), "
        "`HF_HUB_OFFLINE` and `HF_HUB_USER_AGENT_ORIGIN`.",
        "",
        "## Refused",
        "",
        "TGI knows these variables. Ignoring them would change answers, so they stop the start.",
        "",
        *_table("Why", REFUSED),
        "",
        "## Without effect",
        "",
        "TGI knows these variables, too. The server accepts them, and one line at start names "
        "those that are set. It does not read `HOSTNAME`, which container runtimes set; `HOST` is "
        "the address.",
        "",
        *_table("Why", WITHOUT_EFFECT),
    ]
    return "\n".join(lines) + "\n"


def _row(row: SettingRow) -> str:
    aliases = ", ".join(f"`{alias}`" for alias in row.aliases)
    known = [name for name in (row.name, *row.aliases) if name in DEFAULTS]
    tgi = f"`{known[0]}`: {DEFAULTS[known[0]]}" if known else ""
    return f"| `{row.name}` | {aliases} | {row.default} | {tgi} | {row.meaning} |"


def _table(heading: str, reasons: dict[str, str]) -> list[str]:
    rows = [f"| `{name}` | {reason} |" for name, reason in reasons.items()]
    return [f"| Variable | {heading} |", "|---|---|", *rows]
