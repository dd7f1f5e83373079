"""A LoRA adapter as an inference component: real weights, the real server, boto3."""

import subprocess
from collections.abc import Iterator

import pytest

from sagemaker_deploy.execute import pack
from tests.support.aws.local_sagemaker import DEMO_MODEL, IMAGE, REAL_SERVER, ROOT, Local

GENERATE = {"inputs": "What is deep learning?", "parameters": {"max_new_tokens": 12}}
COMPUTE = {"NumberOfCpuCoresRequired": 1, "MinMemoryRequiredInMb": 1024}
MAKE = """
import sys, pathlib, transformers
from tests.support.models import adapters
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
adapters.save(pathlib.Path(sys.argv[2]), model, seed=1)
"""


@pytest.fixture(scope="module")
def adapter_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random adapter of the demo model; peft is in the server's environment."""
    folder = tmp_path_factory.mktemp("adapter")
    python = REAL_SERVER[0]
    argv = [python, "-W", "ignore", "-c", MAKE, str(DEMO_MODEL), str(folder / "noisy")]
    subprocess.run(argv, check=True, cwd=ROOT)
    pack(folder / "noisy", None, folder / "noisy.tar.gz")
    return (folder / "noisy.tar.gz").as_uri()


@pytest.fixture(scope="module")
def base(local: Local) -> Iterator[Local]:
    local.deploy_without_models("lora")
    container = {"Image": IMAGE, "Environment": {"HF_MODEL_ID": str(DEMO_MODEL)}}
    _add(local, "base", {"Container": container, "ComputeResourceRequirements": COMPUTE})
    yield local
    local.sagemaker.delete_endpoint(EndpointName="lora")


def _add(local: Local, name: str, specification: dict) -> None:
    record = local.add_component("lora", name, specification)
    assert record["InferenceComponentStatus"] == "InService", record["FailureReason"]


def _text(local: Local, component: str) -> str:
    return local.invoke("lora", GENERATE, InferenceComponentName=component)[0]["generated_text"]


def test_an_adapter_component_beside_its_base(base: Local, adapter_url: str) -> None:
    before = _text(base, "base")
    specification = {
        "BaseInferenceComponentName": "base",
        "Container": {"ArtifactUrl": adapter_url},
    }
    _add(base, "noisy", specification)
    assert _text(base, "noisy") != before
    assert _text(base, "base") == before
    base.sagemaker.delete_inference_component(InferenceComponentName="noisy")
    assert _text(base, "base") == before
