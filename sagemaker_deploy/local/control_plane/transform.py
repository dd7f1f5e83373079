"""Runs batch transform jobs, each in its own container.

Bodies are sent in input order, `MaxConcurrentTransforms` at a time; each object's responses go to
`<output>/<key below the input prefix>.out`. A body that fails after its retries fails the job.
"""

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sagemaker_deploy.errors import DeployError
from sagemaker_deploy.local.containers.exchange import Exchange, Failure
from sagemaker_deploy.local.containers.fleet import Fleet, Spec
from sagemaker_deploy.local.containers.process import Container
from sagemaker_deploy.local.containers.storage import join
from sagemaker_deploy.local.control_plane import batches, joins
from sagemaker_deploy.local.control_plane.joins import check_processing
from sagemaker_deploy.local.control_plane.resources import JOB, MODEL, Resources
from sagemaker_deploy.local.control_plane.units import container_definition
from sagemaker_deploy.local.refusals import control_validation

DEFAULT_TIMEOUT_S = 600
DEFAULT_RETRIES = 3
PARAMETERS_TIMEOUT_S = 10.0


class JobFailed(Exception):
    """The container rejected a body."""


class Transforms:
    """Runs jobs, one thread each."""

    def __init__(self, resources: Resources, fleet: Fleet) -> None:
        self._resources = resources
        self._fleet = fleet
        self._stopped: set[str] = set()

    def create(self, params: Mapping[str, Any]) -> str:
        """Start a job and return its ARN. Raises Refusal."""
        definition = container_definition(self._resources.get(MODEL, params["ModelName"]))
        if "ModelDataSource" in definition:
            raise control_validation(
                "Uncompressed model data (ModelDataSource) is not supported by batch transform."
            )
        check_processing(params)
        record = self._resources.create(JOB, {**params, "TransformJobStatus": "InProgress"})
        name = str(params["TransformJobName"])
        threading.Thread(target=self._run, args=(name, params, definition), daemon=True).start()
        return str(record["TransformJobArn"])

    def stop(self, name: str) -> None:
        """Stop a job before its next body."""
        self._resources.get(JOB, name)
        self._stopped.add(name)
        self._resources.change(JOB, name, TransformJobStatus="Stopping")

    def _run(self, name: str, params: Mapping[str, Any], definition: Mapping[str, Any]) -> None:
        try:
            self._carry_out(name, params, definition)
        except (DeployError, JobFailed, ValueError) as error:
            self._resources.set_status(JOB, name, "Failed", error)
            return
        status = "Stopped" if name in self._stopped else "Completed"
        self._resources.change(JOB, name, TransformJobStatus=status)

    def _carry_out(
        self, name: str, params: Mapping[str, Any], definition: Mapping[str, Any]
    ) -> None:
        variables = {**definition.get("Environment", {}), **_variables(params)}
        spec = Spec(f"transform-{name}", {**definition, "Environment": variables})
        container = self._fleet.start(spec)
        try:
            how = batches.transform_options(params, _execution_parameters(container))
            for url in self._inputs(params):
                self._transform(name, params, container, how, url)
        finally:
            self._fleet.stop(container)

    def _inputs(self, params: Mapping[str, Any]) -> list[str]:
        prefix = params["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
        urls = self._fleet.storage.list(prefix)
        if not urls:
            raise JobFailed(f"No objects under {prefix}")
        return urls

    def _transform(
        self,
        name: str,
        params: Mapping[str, Any],
        container: Container,
        how: batches.TransformOptions,
        url: str,
    ) -> None:
        source, output = params["TransformInput"], params["TransformOutput"]
        data = self._fleet.storage.read(url)
        headers = {
            "Content-Type": source.get("ContentType", "application/octet-stream"),
            "Accept": output.get("Accept", "*/*"),
        }
        client = params.get("ModelClientConfig", {})

        def send(body: bytes) -> bytes:
            if name in self._stopped:
                return b""
            return _send(container, headers, body, client)

        cut = batches.bodies(data, source.get("SplitType", "None"), how)
        with ThreadPoolExecutor(how.concurrent) as pool:
            responses = list(pool.map(send, cut))
        prefix = source["DataSource"]["S3DataSource"]["S3Uri"]
        below = url.removeprefix(prefix).lstrip("/") or url.rpartition("/")[2]
        target = join(output["S3OutputPath"], f"{below}.out")
        if params.get("DataProcessing", {}).get("JoinSource") == "Input":
            outputs = batches.assemble(responses, "Line")
            responses = [joins.with_input(data, outputs, headers["Content-Type"])]
        whole = batches.assemble(responses, output.get("AssembleWith", "None"))
        self._fleet.storage.write(target, whole)


def _send(
    container: Container, headers: Mapping[str, str], body: bytes, client: Mapping[str, Any]
) -> bytes:
    timeout_s = client.get("InvocationsTimeoutInSeconds", DEFAULT_TIMEOUT_S)
    trouble = ""
    for _ in range(1 + client.get("InvocationsMaxRetries", DEFAULT_RETRIES)):
        try:
            with Exchange(
                container.port, "/invocations", headers, body, timeout_s=timeout_s
            ) as exchange:
                answer = exchange.read()
        except (TimeoutError, *Failure) as error:
            trouble = f"no answer: {error or 'timed out'}"
            continue
        if exchange.status < 400:
            return answer
        trouble = f"{exchange.status}: {answer[:500].decode(errors='replace')}"
        if exchange.status < 500:
            break
    raise JobFailed(f"ClientError: the container refused a body: {trouble}")


def _execution_parameters(container: Container) -> bytes | None:
    try:
        with Exchange(
            container.port,
            "/execution-parameters",
            {},
            None,
            timeout_s=PARAMETERS_TIMEOUT_S,
            method="GET",
        ) as exchange:
            return exchange.read() if exchange.status == 200 else None
    except (TimeoutError, *Failure):
        return None


def _variables(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the platform's variables for a batch container; only settings of the caller."""
    variables = {"SAGEMAKER_BATCH": "true", **params.get("Environment", {})}
    if "BatchStrategy" in params:
        words = {"SingleRecord": "SINGLE_RECORD", "MultiRecord": "MULTI_RECORD"}
        variables["SAGEMAKER_BATCH_STRATEGY"] = words[params["BatchStrategy"]]
    if "MaxPayloadInMB" in params:
        variables["SAGEMAKER_MAX_PAYLOAD_IN_MB"] = str(params["MaxPayloadInMB"])
    if "MaxConcurrentTransforms" in params:
        variables["SAGEMAKER_MAX_CONCURRENT_TRANSFORMS"] = str(params["MaxConcurrentTransforms"])
    return variables
