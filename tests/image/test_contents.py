"""What is in the image, and what is not."""

import json

import pytest

from tests.support.containers import IMAGE, engine, run_once

TOTAL_LIMIT = 1.6e9
OURS_LIMIT = 0.3e9
CAPABILITY = "com.amazonaws.sagemaker.capabilities"


@pytest.fixture(scope="module")
def config() -> dict:
    return json.loads(engine("image", "inspect", IMAGE))[0]["Config"]


def python(code: str) -> str:
    exit_code, output = run_once("-c", code, entrypoint="python")
    assert exit_code == 0, output
    return output


def test_the_entry_point_is_in_exec_form_and_process_1_is_the_server(config: dict) -> None:
    assert config["Entrypoint"] == ["python", "-m", "container"]
    assert config["Cmd"] == ["serve"]


def test_the_labels_say_what_the_server_can_do_and_where_it_comes_from(config: dict) -> None:
    labels = config["Labels"]
    assert labels[f"{CAPABILITY}.accept-bind-to-port"] == "true"
    routes = python(
        "from container.frontend import routes; import os; print(os.listdir(routes.__path__[0]))"
    )
    assert (f"{CAPABILITY}.multi-models" in labels) == ("models.py" in routes)
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    for name in ("title", "description", "version", "revision", "created", "base.name"):
        assert labels[f"org.opencontainers.image.{name}"], name


def test_compilers_and_the_laptops_side_stay_out() -> None:
    code, output = run_once("-c", "command -v gcc cc g++ make git", entrypoint="sh")
    assert code != 0, output
    absent = ["boto3", "sagemaker", "sagemaker_deploy", "pytest", "mypy", "openai"]
    found = python(f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])")
    assert found.strip() == "[]"


def test_nothing_but_the_packages_and_the_program_was_copied() -> None:
    listing = python("import os; print(sorted(os.listdir('/opt/program')))")
    assert listing.strip() == "['LICENSE', 'container']"


def test_every_package_has_what_it_requires() -> None:
    code, output = run_once("-m", "pip", "check", entrypoint="python")
    assert code == 0, output


def test_the_sizes_are_within_budget() -> None:
    size = int(engine("image", "inspect", "--format", "{{.Size}}", IMAGE))
    ours = int(python(
        "import os; print(sum(os.lstat(os.path.join(folder, name)).st_size"
        " for top in ('/opt/packages', '/opt/program')"
        " for folder, _, names in os.walk(top) for name in names))"
    ))  # fmt: skip
    print(f"image {size / 1e6:.0f} MB, ours {ours / 1e6:.0f} MB")
    assert size < TOTAL_LIMIT
    assert ours < OURS_LIMIT
