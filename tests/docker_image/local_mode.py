"""Deploy an image with the SageMaker SDK 2.x in local mode, ask it, delete it.

The arguments marked "needed" keep the SDK away from AWS; docs/image.md explains them.
"""

import os
import sys
import traceback

from sagemaker.huggingface import HuggingFaceModel
from sagemaker.local import LocalSession

QUESTION = {"messages": [{"role": "user", "content": "What is deep learning?"}]}


def main(image: str, model: str, scratch: str) -> None:
    session = LocalSession()
    session.config = {"local": {"container_root": scratch}}
    served = HuggingFaceModel(
        image_uri=image,
        role="arn:aws:iam::111111111111:role/local",  # needed: a bare name is looked up in IAM
        model_data=f"file://{model}",  # needed: it appears on /opt/ml/model
        code_location="s3://not-used/code",  # needed: or a bucket is looked up
        env={"MESSAGES_API_ENABLED": "true"},
        sagemaker_session=session,
    )
    try:
        predictor = served.deploy(1, "local", wait=False)  # it waits for /ping all the same
        print(predictor.predict(QUESTION)["choices"][0]["message"]["content"], flush=True)
        predictor.delete_endpoint()
    except Exception:
        traceback.print_exc()
        os._exit(1)  # the SDK's thread that follows the container would keep this process


main(*sys.argv[1:])
