"""Plans the creation or update of a deployment from its configuration and the account. Pure."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagemaker_deploy.config import Config
from sagemaker_deploy.errors import ConfigError
from sagemaker_deploy.plan import checks, instances, monitoring, requests, sizing, variants, waits
from sagemaker_deploy.plan.capacity import scaling, schedules
from sagemaker_deploy.plan.capacity.scaling import NOTHING, Registered
from sagemaker_deploy.plan.checks import UNKNOWN_IMAGE, EcrImage
from sagemaker_deploy.plan.monitoring import Watched
from sagemaker_deploy.plan.permissions import deployer, execution
from sagemaker_deploy.plan.sizing import UNKNOWN, ModelSize
from sagemaker_deploy.plan.steps import Plan, Step, Undo, Upload

ECR = re.compile(r"^\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/[^:@]+([:@].+)$")
RESPONSES = "/answers-"  # in the keys of a batch job's responses


@dataclass(frozen=True, slots=True)
class AccountState:
    """The account's state as read-only calls returned it. None means unknown (no permission)."""

    region: str
    account: str
    endpoint_status: str | None = None
    endpoint_config: str | None = None
    variants: frozenset[str] = frozenset()  # of the endpoint
    models: frozenset[str] = frozenset()
    configs: frozenset[str] = frozenset()
    component: Mapping[str, Any] | None = None  # as DescribeInferenceComponent has it
    scaling: Registered = NOTHING
    watched: Watched = monitoring.NOTHING
    quotas: Mapping[str, float] = field(default_factory=dict)  # instances by type
    image: EcrImage = UNKNOWN_IMAGE
    role_exists: bool | None = None
    data_stamp: str = ""
    size: ModelSize = UNKNOWN


def plan(config: Config, account_state: AccountState) -> Plan:
    """Plan the deployment. Raises ConfigError for problems that would certainly fail."""
    _check(config, account_state)
    upload, model = model_request(config, account_state)
    others = requests.other_models(config)
    names = {name: params["ModelName"] for name, params in others.items()}
    endpoint_config = requests.endpoint_config(config, model["ModelName"], names)
    steps: list[Step | Upload] = []
    if account_state.endpoint_status == "Failed":
        steps.append(_delete_failed(config))
    steps += make_model(config, account_state)
    steps += [
        _create("model", "ModelName", params)
        for params in {each["ModelName"]: each for each in others.values()}.values()
        if params["ModelName"] not in (*account_state.models, model["ModelName"])
    ]
    if endpoint_config["EndpointConfigName"] not in account_state.configs:
        steps.append(_create("endpoint_config", "EndpointConfigName", endpoint_config))
    # Before the endpoint, whose update they may roll back.
    steps += monitoring.alarm_steps(config, account_state.watched)
    steps += _endpoint(config, account_state, endpoint_config["EndpointConfigName"])
    if config.component:
        steps += _component(config, account_state, model["ModelName"])
    steps += scaling.steps(config, account_state.scaling)
    steps += schedules.steps(config, account_state.scaling)
    steps += monitoring.dashboard_steps(config, account_state.watched)
    if problems := checks.call_problems(steps):
        raise ConfigError(problems)
    facts, warnings = _facts_and_warnings(config, account_state)
    policies = _policies(config, account_state, upload.resource if upload else config.model.data)
    return Plan(config.name, tuple(steps), tuple(facts), tuple(warnings), policies)


def model_request(
    config: Config, account_state: AccountState
) -> tuple[Upload | None, dict[str, Any]]:
    """Return CreateModel's parameters, and the upload that its data needs first."""
    upload, data_url = _data(config, account_state)
    return upload, requests.model(config, config.image, data_url)


def make_model(config: Config, account_state: AccountState) -> list[Step | Upload]:
    """Plan the model's creation; no steps if it exists."""
    upload, model = model_request(config, account_state)
    if model["ModelName"] in account_state.models:
        return []
    return [*([upload] if upload else []), _create("model", "ModelName", model)]


def folder_stamp(source: Path, code: Path | None) -> str:
    """Hash the names and contents of the files to pack, or of one archive."""
    digest = hashlib.sha256()
    for root in [source, *([code] if code else [])]:
        digest.update(f"{'code' if root is code else 'data'}\n".encode())
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                digest.update(f"{path.relative_to(root)}:{content}\n".encode())
    return digest.hexdigest()[:16]


def _check(config: Config, account_state: AccountState) -> None:
    image = config.image
    problems = checks.problems(config) + checks.size_problems(config, _size(config, account_state))
    problems += checks.quota_problems(config, account_state.quotas)
    problems += monitoring.problems(config, account_state.watched)
    if not ECR.match(image):
        problems.append(
            f"image: {image} is not an image in ECR with a tag or digest "
            "(<account>.dkr.ecr.<region>.amazonaws.com/<repository>:<tag>); push it there first"
        )
    elif account_state.image.exists is False:
        problems.append(f"image: {image} is not in ECR; push it first, or correct the tag")
    else:
        problems += checks.image_problems(config, account_state.image)
    if account_state.role_exists is False:
        problems.append(
            f"role: {config.role} does not exist; `plan --policies` prints the documents to make it"
        )
    if account_state.endpoint_status in ("Creating", "Updating", "Deleting", "RollingBack"):
        problems.append(
            f"endpoint {config.name} is {account_state.endpoint_status}; wait until it has settled "
            "(`status`)"
        )
    if problems:
        raise ConfigError(problems)


def _data(config: Config, account_state: AccountState) -> tuple[Upload | None, str | None]:
    data = config.model.data
    if not data or data.startswith("s3://"):
        return None, data
    if not config.bucket:
        raise ConfigError(["bucket: needed to upload model.data; or put it on S3 yourself"])
    key = f"{requests.artifact_prefix(config.name)}{account_state.data_stamp}/model.tar.gz"
    source = Path(data)
    upload = Upload(f"pack and upload {data}", source, config.model.code, config.bucket, key)
    return upload, upload.resource


def _create(noun: str, name_field: str, params: dict[str, Any]) -> Step:
    """Plan the creation of a resource that needs no waiting; `noun` as in the operation."""
    name, words = params[name_field], noun.replace("_", " ")
    undo = Undo(f"delete_{noun}", {name_field: name})
    return Step(
        f"create the {words}", f"{words} {name}", "sagemaker", f"create_{noun}", params, undo
    )


def _endpoint(config: Config, account_state: AccountState, config_name: str) -> list[Step]:
    params: dict[str, Any] = {"EndpointName": config.name, "EndpointConfigName": config_name}
    resource = f"endpoint {config.name}"
    wait = waits.endpoint_in_service(
        config.name, waits.START_TIMEOUT_S, {"EndpointConfigName": config_name}
    )
    if account_state.endpoint_status in (None, "Failed"):
        undo = Undo("delete_endpoint", {"EndpointName": config.name})
        title = "create the endpoint and wait until it is in service"
        params["Tags"] = requests.tags(config)
        return [Step(title, resource, "sagemaker", "create_endpoint", params, undo, wait)]
    if account_state.endpoint_config == config_name:
        return []
    params |= requests.retained_properties(config)
    if not config.serverless and not variants.are_others(config, account_state.variants):
        alarms = monitoring.rollback_alarms(config)
        params["DeploymentConfig"] = requests.deployment_config(config, alarms)
    title = f"update the endpoint ({config.update.strategy.replace('_', ' ')})"
    operation = "update_endpoint"
    return [Step(title, resource, "sagemaker", operation, params, wait=wait, uses_earlier=True)]


def _component(config: Config, account_state: AccountState, model_name: str) -> list[Step]:
    params = requests.component(config, model_name)
    name = params["InferenceComponentName"]
    where = {"InferenceComponentName": name}
    wait = waits.component_in_service(name, waits.START_TIMEOUT_S)
    resource = f"inference component {name}"
    if account_state.component is None:
        undo = Undo("delete_inference_component", where)
        title = "create the inference component and wait for it"
        operation = "create_inference_component"
        return [Step(title, resource, "sagemaker", operation, params, undo, wait)]
    changed: dict[str, Any] = {**where, "Specification": params["Specification"]}
    if not config.scaling:  # else keep the count that scaling has reached
        changed["RuntimeConfig"] = params["RuntimeConfig"]
    if _is_as_described(changed, account_state.component):
        return []
    title, operation = "update the inference component", "update_inference_component"
    return [Step(title, resource, "sagemaker", operation, changed, wait=wait, uses_earlier=True)]


def _is_as_described(expected: dict[str, Any], described: Mapping[str, Any]) -> bool:
    copies = expected.get("RuntimeConfig", {}).get("CopyCount")
    if copies not in (None, described.get("RuntimeConfig", {}).get("DesiredCopyCount")):
        return False
    known = described.get("Specification", {})
    return all(known.get(key) == value for key, value in expected["Specification"].items())


def _delete_failed(config: Config) -> Step:
    return Step(
        "delete the endpoint that an earlier try left failed",
        f"endpoint {config.name}",
        "sagemaker",
        "delete_endpoint",
        {"EndpointName": config.name},
        wait=waits.endpoint_deleted(config.name),
    )


def _facts_and_warnings(config: Config, account_state: AccountState) -> tuple[list[str], list[str]]:
    facts = [sizing.cost(config)]
    warnings = checks.size_warnings(config, _size(config, account_state))
    warnings += checks.quota_warnings(config, account_state.quotas)
    if account_state.endpoint_status == "InService":
        facts.append(f"endpoint {config.name} is in service; it is updated, not made anew")
    for name in config.all_instance_types:
        instance = instances.find(name)
        if instance is None:
            warnings.append(f"{name}: its memory is not known here, so the fit is not checked")
            continue
        size = _size(config, account_state)
        more, worries = sizing.sentences(
            size, instance, config.concurrency, config.max_total_tokens
        )
        facts += more
        warnings += worries
    if config.has_gpus and not variants.ami(config):
        warnings.append(
            "cuda: not set, so SageMaker takes its default host image, whose driver may be older "
            'than the image\'s CUDA; set cuda: "13.0", say'
        )
    if config.secrets:
        names = ", ".join(config.secrets)
        warnings.append(
            f"secrets ({names}): whoever may call DescribeModel sees their values, as with every "
            "variable; a model in S3 (model.data) needs no token"
        )
    return facts, warnings


def _size(config: Config, account_state: AccountState) -> ModelSize:
    billion = config.model.parameters_billion
    if billion is None:
        return account_state.size
    weights = int(billion * 1e9 * config.model.bytes_per_parameter)
    return ModelSize(weights, account_state.size.kv_bytes_per_token, "model.parameters_billion")


def _policies(config: Config, account_state: AccountState, data_url: str | None) -> dict[str, Any]:
    region, account = account_state.region, account_state.account
    policies: dict[str, Any] = {
        "trust": execution.trust(),
        "execution": execution.execution(config, region, account, data_url),
        "deployer": deployer.deployer(config, region, account),
    }
    if document := execution.repository(config, account):
        policies["repository"] = document
    return policies
