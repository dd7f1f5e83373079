"""The runtime API's routes: InvokeEndpoint and its variants, and the OpenAI-compatible route.

Wire format: rest-json as in botocore's `sagemaker-runtime` model.
"""

import json

from flask import Blueprint, Response, request

from sagemaker_deploy.local import refusals
from sagemaker_deploy.local.invocations.async_queue import AsyncQueue
from sagemaker_deploy.local.invocations.calls import Runtime


def blueprint(runtime: Runtime, queue: AsyncQueue) -> Blueprint:
    """Create the routes."""
    routes = Blueprint("runtime", __name__)

    @routes.post("/endpoints/<name>/invocations")
    def invoke(name: str) -> Response:
        check_signed()
        return runtime.invoke(runtime.read_call("InvokeEndpoint", name))

    @routes.post("/endpoints/<name>/invocations-response-stream")
    def stream(name: str) -> Response:
        check_signed()
        return runtime.stream(runtime.read_call("InvokeEndpointWithResponseStream", name))

    @routes.post("/endpoints/<name>/async-invocations")
    def submit(name: str) -> Response:
        check_signed()
        call = runtime.read_call("InvokeEndpointAsync", name)
        ticket = queue.submit(call)
        answer = Response(json.dumps({"InferenceId": ticket.inference_id}), 202)
        answer.headers["Content-Type"] = "application/json"
        answer.headers["X-Amzn-SageMaker-OutputLocation"] = ticket.output_url
        if ticket.failure_url:
            answer.headers["X-Amzn-SageMaker-FailureLocation"] = ticket.failure_url
        return answer

    @routes.post("/endpoints/<name>/openai/v1/chat/completions")
    def chat(name: str) -> Response:
        return runtime.pass_through(name, None, "/v1/chat/completions")

    @routes.post("/endpoints/<name>/inference-components/<component>/openai/v1/chat/completions")
    def component_chat(name: str, component: str) -> Response:
        return runtime.pass_through(name, component, "/v1/chat/completions")

    return routes


def check_signed() -> None:
    """Reject requests without a SigV4 signature; the signature itself is not verified."""
    if not request.headers.get("Authorization", "").startswith("AWS4-HMAC-SHA256"):
        raise refusals.unsigned()


def refusal_response(refusal: refusals.Refusal) -> Response:
    """Format a refusal in the rest-json protocol."""
    body = {"Message": refusal.message, "message": refusal.message, **refusal.fields}
    answer = Response(json.dumps(body), refusal.status, content_type="application/json")
    if refusal.code:
        answer.headers["x-amzn-errortype"] = refusal.code
    return answer
