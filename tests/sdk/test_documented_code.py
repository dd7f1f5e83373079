"""The documents' Python, as it stands, against the local endpoint; nothing leaves the machine."""

import os
import re
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor

import boto3
import pytest

from sagemaker_deploy.commands.local import sdk_variables
from sagemaker_deploy.execute import pack
from tests.support.aws.local_sagemaker import DEMO_MODEL, ROOT, Local
from tests.support.aws.outside import Trap

SDK2 = sys.executable
SDK3 = str(ROOT / ".venv-sdk3" / "bin" / "python")
# A word of a block, and the interpreter that has its library.
INTERPRETERS = {
    "sagemaker.serve": SDK3,
    "sagemaker.core": SDK3,
    "sagemaker.huggingface": SDK2,
    "sagemaker.predictor": SDK2,
    "boto3": SDK2,
}
Answer = subprocess.CompletedProcess[str]
# Each imports an SDK, and they run side by side.
TIMEOUT_S = 500
pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)


def _blocks() -> dict[str, tuple[str, str]]:
    """Return interpreter and code of each block that calls SageMaker, by document and library."""
    blocks = {}
    for document in ("README.md", "docs/deploying.md"):
        for code in re.findall(
            r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S
        ):
            word = next((word for word in INTERPRETERS if word in code), None)
            if word:
                assert f"{document} {word}" not in blocks
                blocks[f"{document} {word}"] = (INTERPRETERS[word], code)
    return blocks


BLOCKS = _blocks()


@pytest.fixture(scope="module")
def archive(moto_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Put the documents' archive, which is the demo model's, on moto's S3."""
    path = tmp_path_factory.mktemp("archive") / "model.tar.gz"
    pack(DEMO_MODEL, None, path)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="my-models")
    s3.upload_file(str(path), "my-models", "chat/model.tar.gz")


@pytest.fixture(scope="module")
def answers(
    local: Local, archive: None, outside: Trap, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, "Future[Answer]"]:
    """Every block, run at the same time, since the SDK sleeps between looks at an endpoint."""
    local.deploy("local", {"Environment": {"HF_MODEL_ID": str(DEMO_MODEL)}})
    folder = tmp_path_factory.mktemp("documents")
    proxies = outside.variables()
    environ = {
        "PATH": os.environ["PATH"], "HOME": str(folder),
        "AWS_ENDPOINT_URL_SAGEMAKER": local.url, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": local.url,
        "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_DEFAULT_REGION": "us-east-1", **sdk_variables(folder),
    }  # fmt: skip

    def run(name: str) -> Answer:
        interpreter, code = BLOCKS[name]
        return subprocess.run(
            [interpreter, "-W", "ignore", "-c", code], env=environ | proxies, cwd=folder,
            capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
        )  # fmt: skip

    pool = ThreadPoolExecutor(len(BLOCKS))
    return {name: pool.submit(run, name) for name in BLOCKS}


def test_both_documents_have_every_library() -> None:
    words = {name.rpartition(" ")[2] for name in BLOCKS}
    assert words == set(INTERPRETERS)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_runs_as_it_stands(name: str, answers: dict[str, "Future[Answer]"]) -> None:
    answer = answers[name].result()
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip(), "prints no answer"


def test_nothing_left_the_machine(answers: dict[str, "Future[Answer]"], outside: Trap) -> None:
    for answer in answers.values():
        answer.result()
    assert outside.asked == []
