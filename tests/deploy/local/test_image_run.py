"""`local --image`: the arguments given to docker do what they should; docker itself is a script."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.aws.local_sagemaker import FAKE_SERVER, ROOT, client
from tests.support.servers import wait_for

# Understands `run --rm -p ADDRESS:PORT:8080 [-v ...] [-e NAME=VALUE] IMAGE serve` and nothing else.
DOCKER = """#!{python}
import os, sys
words = sys.argv[1:]
assert words[:2] == ["run", "--rm"] and words[-2:] == ["llm:1", "serve"], words
options = dict(zip(words[2:-2:2], words[3:-2:2]))
address, port, inside = options["-p"].split(":")
assert (address, inside) == ("127.0.0.1", "8080"), words
variables = [words[i + 1] for i in range(len(words)) if words[i] == "-e"]
env = dict(os.environ, SAGEMAKER_BIND_TO_PORT=port, **dict(v.split("=", 1) for v in variables))
os.execve({argv!r}[0], {argv!r}, env)
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "bin" / "docker"
    path.parent.mkdir()
    path.write_text(DOCKER.format(python=sys.executable, argv=FAKE_SERVER))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return path


def test_an_image_answers_behind_the_local_endpoint(tmp_path: Path, docker: Path) -> None:
    argv = [
        sys.executable, "-m", "sagemaker_deploy", "local", "--port", "0", "--json",
        "--image", "llm:1", "--model", "org/model", "--env", "A=1",
        "--logs", str(tmp_path / "logs"),
    ]  # fmt: skip
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        listening = json.loads(process.stdout.readline())
        answer = client("sagemaker-runtime", listening["url"]).invoke_endpoint(
            EndpointName="local", Body=b"{}"
        )
        env = json.loads(answer["Body"].read())["env"]
        assert (env["HF_MODEL_ID"], env["A"]) == ("org/model", "1")
        process.terminate()
        wait_for(lambda: process.poll() is not None, 40)
    assert process.returncode == 0
