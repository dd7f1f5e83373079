"""The SageMaker SDK in a fresh process with nothing set but where the local endpoint is."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.aws.local_sagemaker import DEMO_MODEL, IMAGE, REGION, ROLE, Local

SCRIPT = """
import sys, time
from sagemaker.huggingface import HuggingFaceModel
image, role, model_id = sys.argv[1:]
model = HuggingFaceModel(
    image_uri=image,
    role=role,
    env={"HF_MODEL_ID": model_id, "MESSAGES_API_ENABLED": "true"},
    code_location="s3://any/code",  # or the SDK asks STS and S3 for a bucket of its own
)
predictor = model.deploy(initial_instance_count=1, instance_type="ml.g5.xlarge", wait=False)
describe = model.sagemaker_session.sagemaker_client.describe_endpoint
while describe(EndpointName=predictor.endpoint_name)["EndpointStatus"] == "Creating":
    time.sleep(0.2)
chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
print("answer:", predictor.predict(chat)["choices"][0]["message"]["content"])
predictor.delete_model()
predictor.delete_endpoint()
"""


def test_deploy_and_predict_need_two_variables(local: Local, tmp_path: Path) -> None:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL_SAGEMAKER": local.url,
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": local.url,
    }
    argv = [sys.executable, "-W", "ignore", "-c", SCRIPT, IMAGE, ROLE, str(DEMO_MODEL)]
    result = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if line.startswith("answer:")]
    assert lines
    assert lines[0] != "answer:"
