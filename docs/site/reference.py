"""Generate the pages of docs/ that come from the code: `make docs`.

Each function returns one page. A test compares the pages with those that are committed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from dashboard import dashboard_text
from figure import figure

from container import errors
from container.__main__ import main as container_command
from container.errors import ServingError
from container.frontend.apis.docs.openapi import document
from container.frontend.apis.docs.route_specs import OPERATIONS
from container.frontend.observability.embedder_metrics import EmbedderCollector
from container.frontend.observability.metrics import Metrics
from container.frontend.web import error_responses
from container.messages.embedder import EmbedderLoad
from container.messages.engine import EngineLoad, Status
from container.settings.page import markdown_page

DOCS = Path(__file__).parents[1]
MADE = "This page is made from the code by `make docs`."
Json = dict[str, Any]


def pages() -> dict[str, str]:
    """Return the pages by their paths under docs/."""
    return {
        "configuration.md": markdown_page(),
        "reference/routes.md": routes_page(),
        "reference/errors.md": errors_page(),
        "reference/metrics.md": metrics_page(),
        "reference/commands.md": commands_page(),
        "monitoring/grafana.json": dashboard_text(),
        "images/figures.svg": figure(),
    }


def routes_page() -> str:
    """Describe every route, and the fields of every body."""
    described = document()
    lines = ["# Routes", "", f"{MADE} [api.md](../api.md) explains the fields; a running server",
             "has the same as `/openapi.json`, and `/docs` to try it.", ""]  # fmt: skip
    for tag in dict.fromkeys(operation.tag for operation in OPERATIONS):
        lines += [f"## {tag}", "", "| Route | Body | Summary |", "|---|---|---|"]
        for operation in OPERATIONS:
            if operation.tag == tag:
                body = described["paths"][operation.path][operation.method].get("requestBody", {})
                route = f"`{operation.method.upper()} {operation.path}`"
                lines.append(f"| {route} | {_body_links(body)} | {operation.summary} |")
        lines.append("")
    schemas = described["components"]["schemas"]
    names = sorted(
        {
            name
            for path in described["paths"].values()
            for operation in path.values()
            for name in _body_names(operation.get("requestBody", {}))
        }
    )
    for name in names:
        lines += [f"## {name}", "", schemas[name].get("description", ""), ""]
        lines += ["| Field | Type | Default |", "|---|---|---|"]
        required = schemas[name].get("required", [])
        for field, schema in schemas[name].get("properties", {}).items():
            default = "required" if field in required else f"`{_shown(schema.get('default'))}`"
            lines.append(f"| `{field}` | {_type(schema)} | {default} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def errors_page() -> str:
    """Describe every kind of error, and its status in every dialect."""
    lines = ["# Errors", "", f"{MADE} Every error of this server is one of these. A message names",
             "the field, the value and the limit; it has no traceback and is under 1 KB.", "",
             "| Error | Meaning | TGI | TEI | OpenAI | Anthropic |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    tables: list[Any] = [error_responses.TGI, error_responses.TEI, error_responses.OPENAI,
              error_responses.ANTHROPIC]  # fmt: skip
    for kind in _kinds(ServingError):
        if kind in error_responses.TGI:
            cells = " | ".join(_form(table.get(kind)) for table in tables)
            meaning = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
            lines.append(f"| {kind.__name__} | {meaning} | {cells} |")
    codes = {"0": "drained after SIGTERM", str(errors.ConfigError.exit_code): "wrong settings",
             str(errors.ModelLoadError.exit_code): "a model that cannot be served",
             "4": "a process keeps dying", "5": "gunicorn exited: a taken port, say"}  # fmt: skip
    lines += ["", "## Exit codes of the container", "", "| Code | Meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in codes.items()]
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Describe everything on /metrics."""
    status = Status("ready", "", load=EngineLoad())
    service: Any = SimpleNamespace(status=status)
    metrics = Metrics(service)
    texts: Any = SimpleNamespace(
        load=EmbedderLoad(), status=SimpleNamespace(load=EmbedderLoad()), fallbacks=()
    )
    metrics.add(EmbedderCollector(texts))
    text = metrics.render().decode()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.M))
    lines = ["# Metrics", "", f"{MADE} They are on `/metrics`, for Prometheus, without a key.", "",
             "| Name | Kind | Meaning |", "|---|---|---|"]  # fmt: skip
    for name, meaning in sorted(re.findall(r"^# HELP (\S+(?<!_created)) (.*)$", text, re.M)):
        kind = {"unknown": "counter", "untyped": "counter"}.get(kinds[name], kinds[name])
        lines.append(f"| `{name}` | {kind} | {meaning} |")
    return "\n".join(lines) + "\n"


def commands_page() -> str:
    """Describe the commands of `python -m container`."""
    assert isinstance(container_command, click.Group)
    lines = ["# Commands", "", f"{MADE} Those of `python -m sagemaker_deploy`, also",
             "`sagemaker-llm endpoint`, are in [deploying.md](../deploying.md).", ""]  # fmt: skip
    for name, command in sorted(container_command.commands.items()):
        if not command.hidden:
            context = click.Context(command, info_name=f"python -m container {name}")
            context.terminal_width = 96  # not the width of whoever runs this
            lines += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _kinds(kind: type[ServingError]) -> Iterator[type[ServingError]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from _kinds(inner)


def _form(form: Any) -> str:
    if form is None:
        return ""
    name = getattr(form, "error_type", None) or getattr(form, "code", None) or form.type
    return f"{form.status} `{name}`"


def _body_names(body: object) -> list[str]:
    return re.findall(r"#/components/schemas/(\w+)", str(body))


def _body_links(body: Json) -> str:
    return ", ".join(f"[{name}](#{name.lower()})" for name in _body_names(body))


def _type(schema: Json) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema or "oneOf" in schema:
        kinds = [_type(each) for each in schema.get("anyOf") or schema["oneOf"]]
        return " or ".join(kind for kind in dict.fromkeys(kinds) if kind != "null")
    if "enum" in schema or "const" in schema:
        return " or ".join(
            f"`{_shown(value)}`" for value in schema.get("enum", [schema.get("const")])
        )
    kind = str(schema.get("type", "any"))
    return f"list of {_type(schema['items'])}" if kind == "array" and "items" in schema else kind


def _shown(value: object) -> str:
    return (
        "unset" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


if __name__ == "__main__":
    for path, content in pages().items():
        (DOCS / path).write_text(content)
