"""Record which attributes Terraform's AWS provider has, from its published bindings for TypeScript.

    npm pack @cdktf/provider-aws && tar xzf cdktf-provider-aws-*.tgz
    python tests/deploy/templates/read_provider.py package

writes provider.json beside this file: for each resource its attributes, each with its type or, for
a block, the block's attributes. A required one ends in an asterisk.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

RESOURCES = (
    "sagemaker-model",
    "sagemaker-endpoint-configuration",
    "sagemaker-endpoint",
    "appautoscaling-target",
    "appautoscaling-policy",
    "appautoscaling-scheduled-action",
    "cloudwatch-metric-alarm",
    "cloudwatch-dashboard",
    "data-aws-secretsmanager-secret-version",
)
INTERFACE = re.compile(r"^export interface (\w+)[^{]*\{\n(.*?)^\}", re.M | re.S)
FIELD = re.compile(
    r"\{@link \S+?#(\w+) [^}]*\}(?:(?!\*/).)*\*/\s+readonly \w+(\??): (\{[^}]*\}|[^;{]+)", re.S
)
PAGE = re.compile(r"providers/hashicorp/aws/([\d.]+)/docs/(resources|data-sources)/(\w+)#")
# Attributes of Terraform itself, which no document sets.
NOT_OURS = {"id", "tags_all"}


def read(package: Path) -> dict[str, Any]:
    """Read the attributes of RESOURCES from an unpacked package."""
    schema: dict[str, Any] = {}
    for folder in RESOURCES:
        text = (package / "lib" / folder / "index.d.ts").read_text()
        match = PAGE.search(text)
        assert match, folder
        schema["version"], kind, name = match.groups()
        interfaces = dict(INTERFACE.findall(text))
        top = next(body for name, body in interfaces.items() if name.endswith("Config"))
        prefix = "data." if kind == "data-sources" else ""
        schema[f"{prefix}aws_{name}"] = _block(top, interfaces)
    return schema


def _block(body: str, interfaces: dict[str, str]) -> dict[str, Any]:
    block: dict[str, Any] = {}
    for name, optional, kind in FIELD.findall(body):
        if name in NOT_OURS:
            continue
        first = kind.partition(" | ")[0].strip()
        block_name = first.removesuffix("[]")
        is_block = block_name in interfaces
        plain = "map" if first.startswith("{") else first
        value = _block(interfaces[block_name], interfaces) if is_block else plain
        block[name + ("" if optional else "*")] = value
    return block


if __name__ == "__main__":
    target = Path(__file__).with_name("provider.json")
    target.write_text(json.dumps(read(Path(sys.argv[1])), indent=1, sort_keys=True) + "\n")
