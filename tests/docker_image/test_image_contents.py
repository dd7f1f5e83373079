"""The files and packages of the image, and those that it must not have."""

import json
import os
import subprocess

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

from tests.support.image.containers import IMAGE, engine, run_once
from tests.support.servers import ROOT

TOTAL_LIMIT = 1.6e9
OURS_LIMIT = 0.3e9
# What sentence-transformers imports is as large as half of the rest; the total has room for it.
NOT_COUNTED = ("scipy", "scipy.libs", "sklearn")
CAPABILITY = "com.amazonaws.sagemaker.capabilities"


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads(engine("image", "inspect", IMAGE))[0]["Config"]


def python(code: str) -> str:
    exit_code, output = run_once("-c", code, entrypoint="python")
    assert exit_code == 0, output
    return output


def test_the_entry_point_makes_the_server_process_1(config: dict) -> None:
    assert config["Entrypoint"] == ["python", "-m", "container"]
    assert config["Cmd"] == ["serve"]


def test_the_labels_have_capabilities_and_source(config: dict) -> None:
    labels = config["Labels"]
    assert labels[f"{CAPABILITY}.accept-bind-to-port"] == "true"
    has_routes = python(
        "import importlib.util as u; print(bool(u.find_spec('container.frontend.multi_model')))"
    )
    assert (f"{CAPABILITY}.multi-models" in labels) == (has_routes.strip() == "True")
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    for name in ("title", "description", "version", "revision", "created", "base.name"):
        assert labels[f"org.opencontainers.image.{name}"], name


def test_compilers_and_the_laptops_side_stay_out() -> None:
    code, output = run_once("-c", "command -v gcc cc g++ make git", entrypoint="sh")
    assert code != 0, output
    absent = ["boto3", "sagemaker", "sagemaker_deploy", "pytest", "mypy", "openai"]
    printed = python(f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])")
    assert printed.strip() == "[]"


def test_nothing_but_the_packages_and_the_program_was_copied() -> None:
    listing = python("import os; print(sorted(os.listdir('/opt/program')))")
    assert listing.strip() == "['LICENSE', 'container']"


def test_the_index_of_transformers_is_written() -> None:
    code = (
        "from container.transformers_index import SCAN, install; install();"
        "from transformers.utils import import_utils as u;"
        "print(getattr(u, SCAN).__self__._read() is not None)"
    )
    assert python(code).splitlines()[-1] == "True"


def test_the_compiled_kernels_equal_torch() -> None:
    module = "container.model.loading.cpu_kernels"
    printed = python(f"from {module} import load_kernels; print(load_kernels())")
    assert "Kernels object" in printed


def test_every_package_has_what_it_requires() -> None:
    code, output = run_once("-m", "pip", "check", entrypoint="python")
    assert code == 0, output


def test_the_sizes_are_within_budget() -> None:
    total = int(engine("image", "inspect", "--format", "{{.Size}}", IMAGE))
    sizes = json.loads(python(
        "import os, json; top = '/opt/packages'; print(json.dumps({part: sum("
        "os.lstat(os.path.join(folder, name)).st_size"
        " for folder, _, names in os.walk(os.path.join(top, part)) for name in names)"
        " for part in os.listdir(top)}))"
    ))  # fmt: skip
    counted = sum(size for part, size in sizes.items() if part not in NOT_COUNTED)
    print(f"image {total / 1e6:.0f} MB, packages {sum(sizes.values()) / 1e6:.0f} MB")
    assert total < TOTAL_LIMIT
    assert counted < OURS_LIMIT, sorted(sizes.items(), key=lambda item: -item[1])[:10]


def test_the_bill_of_materials_has_packages_and_licences() -> None:
    env = os.environ | {"IMAGE": IMAGE}
    subprocess.run(["image/sbom.sh"], cwd=ROOT, env=env, check=True)
    text = (ROOT / "build" / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_5).validate_str(text) is None
    parts = json.loads(text)["components"]
    licences = {
        (canonicalize_name(part["name"]), part["version"]): part.get("licenses") for part in parts
    }
    without = [pin for pin in _locked("server.lock", "torch-cpu.lock") if not licences[pin]]
    assert not without
    assert any(part.get("purl", "").startswith("pkg:deb/debian/libc6@") for part in parts)


def _locked(*names: str) -> set[tuple[str, str]]:
    lines = "\n".join((ROOT / "image" / "locks" / name).read_text() for name in names).splitlines()
    pins = [line.split()[0].split("==") for line in lines if "==" in line]
    return {(canonicalize_name(package), version) for package, version in pins}
