"""The control plane's actions that a deployment needs, over the local records and endpoints.

Wire format: AWS JSON 1.1, an action in `X-Amz-Target: SageMaker.<action>`. Inputs are checked
against botocore's model of the service. An unsupported action is rejected with an error naming it.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from sagemaker_deploy import service_model
from sagemaker_deploy.local.containers.fleet import Spec
from sagemaker_deploy.local.control_plane.endpoints import Endpoints
from sagemaker_deploy.local.control_plane.resources import (
    COMPONENT,
    CONFIG,
    ENDPOINT,
    KINDS,
    MODEL,
    Kind,
    Record,
    Resources,
)
from sagemaker_deploy.local.control_plane.transform import Transforms
from sagemaker_deploy.local.control_plane.units import Unit, container_definition
from sagemaker_deploy.local.refusals import Refusal, control_validation

Params = Mapping[str, Any]
STARTUP_TIMEOUT_S = 480


class ControlPlane:
    """Executes actions of the control plane."""

    def __init__(self, resources: Resources, endpoints: Endpoints, transforms: Transforms) -> None:
        self._resources = resources
        self._endpoints = endpoints
        self._transforms = transforms
        self._special: dict[str, Callable[[Params], Record]] = {
            "CreateEndpointConfig": self._create_config,
            "CreateEndpoint": self._create_endpoint,
            "DescribeEndpoint": self._describe_endpoint,
            "UpdateEndpoint": self._update_endpoint,
            "UpdateEndpointWeightsAndCapacities": self._update_weights,
            "DeleteEndpoint": self._delete_endpoint,
            "CreateInferenceComponent": self._create_component,
            "DescribeInferenceComponent": self._describe_component,
            "UpdateInferenceComponent": self._update_component,
            "UpdateInferenceComponentRuntimeConfig": self._update_copies,
            "DeleteInferenceComponent": self._delete_component,
            "CreateTransformJob": self._create_job,
            "StopTransformJob": self._stop_job,
            "AddTags": self._add_tags,
            "DeleteTags": self._delete_tags,
            "ListTags": self._list_tags,
        }

    def act(self, action: str, params: Params) -> Record:
        """Check the input, execute the action and return its output. Raises Refusal."""
        handler = self._special.get(action) or self._generic(action)
        if handler is None:
            raise Refusal(
                400, "UnknownOperationException", f"the local endpoint does not imitate {action}"
            )
        try:
            service_model.check_input(service_model.CONTROL, action, params)
        except service_model.ShapeError as error:
            raise control_validation(str(error)) from error
        return handler(params)

    def _generic(self, action: str) -> Callable[[Params], Record] | None:
        for kind in KINDS:
            work = {
                f"Create{kind.noun}": self._create,
                f"Describe{kind.noun}": self._describe,
                f"Delete{kind.noun}": self._delete,
                f"List{kind.noun}s": self._list,
            }.get(action)
            if work:
                return functools.partial(work, kind)
        return None

    def _create(self, kind: Kind, params: Params) -> Record:
        if kind is MODEL:
            container_definition({**params})
        return {kind.arn_field: self._resources.create(kind, params)[kind.arn_field]}

    def _describe(self, kind: Kind, params: Params) -> Record:
        record = self._resources.get(kind, params[kind.name_field])
        return service_model.only_known(record, service_model.CONTROL, f"Describe{kind.noun}")

    def _delete(self, kind: Kind, params: Params) -> Record:
        self._resources.delete(kind, params[kind.name_field])
        return {}

    def _list(self, kind: Kind, params: Params) -> Record:
        operation = service_model.operation(service_model.CONTROL, f"List{kind.noun}s")
        known = operation.output_shape.members[kind.list_field].member.members
        part = params.get("NameContains", "")
        records = [
            {field: value for field, value in record.items() if field in known}
            for record in self._resources.all(kind)
            if part.lower() in record[kind.name_field].lower()
        ]
        return {kind.list_field: records[: params.get("MaxResults", 100)]}

    def _create_config(self, params: Params) -> Record:
        for variant in params["ProductionVariants"]:
            _check_variant(variant, params)
            if "ModelName" in variant:
                self._resources.get(MODEL, variant["ModelName"])
        return self._create(CONFIG, params)

    def _create_endpoint(self, params: Params) -> Record:
        self._resources.get(CONFIG, params["EndpointConfigName"])
        record = self._resources.create(ENDPOINT, {**params, "EndpointStatus": "Creating"})
        self._endpoints.create(params["EndpointName"], params["EndpointConfigName"])
        return {"EndpointArn": record["EndpointArn"]}

    def _describe_endpoint(self, params: Params) -> Record:
        name = params["EndpointName"]
        record = self._resources.get(ENDPOINT, name)
        live = self._endpoints.live(name)
        record["ProductionVariants"] = [_variant_summary(unit) for unit in live.variants.values()]
        record |= {key: live.config[key] for key in ("AsyncInferenceConfig",) if key in live.config}
        return service_model.only_known(record, service_model.CONTROL, "DescribeEndpoint")

    def _update_endpoint(self, params: Params) -> Record:
        record = self._resources.get(ENDPOINT, params["EndpointName"])
        if record["EndpointStatus"] != "InService":
            raise control_validation(
                f'Cannot update in-progress endpoint "{record["EndpointArn"]}".'
            )
        self._endpoints.update(params["EndpointName"], params["EndpointConfigName"])
        return {"EndpointArn": record["EndpointArn"]}

    def _update_weights(self, params: Params) -> Record:
        record = self._resources.get(ENDPOINT, params["EndpointName"])
        live = self._endpoints.live(params["EndpointName"])
        for desired in params["DesiredWeightsAndCapacities"]:
            unit = live.variants.get(desired["VariantName"])
            if unit is None:
                raise control_validation(f"No variant {desired['VariantName']!r}")
            changes = {"InitialVariantWeight": desired.get("DesiredWeight")}
            changes |= {"InitialInstanceCount": desired.get("DesiredInstanceCount")}
            weights = {key: value for key, value in changes.items() if value is not None}
            unit.settings = {**unit.settings, **weights}
        return {"EndpointArn": record["EndpointArn"]}

    def _delete_endpoint(self, params: Params) -> Record:
        name = params["EndpointName"]
        self._resources.delete(ENDPOINT, name)
        for component in self._resources.all(COMPONENT):
            if component["EndpointName"] == name:
                self._resources.delete(COMPONENT, component["InferenceComponentName"])
        self._endpoints.delete(name)
        return {}

    def _create_component(self, params: Params) -> Record:
        endpoint = self._resources.get(ENDPOINT, params["EndpointName"])
        if not self._endpoints.live(params["EndpointName"]).has_components:
            raise control_validation(
                f'Endpoint "{endpoint["EndpointArn"]}" has models of its own: an endpoint for '
                "inference components has variants without ModelName."
            )
        if params.get("RuntimeConfig", {}).get("CopyCount") == 0:
            raise control_validation("CopyCount must be larger than 0 when a component is created.")
        unit = self._component_unit(params)
        record = self._resources.create(
            COMPONENT, {**params, "InferenceComponentStatus": "Creating"}
        )
        self._endpoints.add_component(params["EndpointName"], unit)
        return {"InferenceComponentArn": record["InferenceComponentArn"]}

    def _component_unit(self, params: Params) -> Unit:
        name, specification = params["InferenceComponentName"], params["Specification"]
        if base := specification.get("BaseInferenceComponentName"):
            self._resources.get(COMPONENT, base)
            return Unit(name, params, None, base=base)
        if "ModelName" in specification:
            model = self._resources.get(MODEL, specification["ModelName"])
            definition = container_definition(model)
        else:
            inline = specification.get("Container", {})
            definition = {"ModelDataUrl": inline.get("ArtifactUrl"), **inline}
        startup = specification.get("StartupParameters", {})
        timeout_s = startup.get("ContainerStartupHealthCheckTimeoutInSeconds", STARTUP_TIMEOUT_S)
        spec = Spec(f"{params['EndpointName']}/{name}", definition, timeout_s)
        return Unit(name, params, spec)

    def _describe_component(self, params: Params) -> Record:
        record = self._resources.get(COMPONENT, params["InferenceComponentName"])
        live = self._endpoints.live(record["EndpointName"])
        unit = live.components[record["InferenceComponentName"]]
        desired = int(record.get("RuntimeConfig", {}).get("CopyCount", 1))
        record["RuntimeConfig"] = {
            "DesiredCopyCount": desired,
            "CurrentCopyCount": desired if unit.container or unit.base else 0,
        }
        return service_model.only_known(record, service_model.CONTROL, "DescribeInferenceComponent")

    def _update_component(self, params: Params) -> Record:
        name = params["InferenceComponentName"]
        record = self._resources.get(COMPONENT, name)
        if params.get("RuntimeConfig", {}).get("CopyCount") == 0:
            raise control_validation("CopyCount must be larger than 0; use the runtime config.")
        changed = {key: params[key] for key in ("Specification", "RuntimeConfig") if key in params}
        unit = self._component_unit({**record, **changed})
        self._resources.change(COMPONENT, name, InferenceComponentStatus="Updating", **changed)
        self._endpoints.replace_component(record["EndpointName"], unit)
        return {"InferenceComponentArn": record["InferenceComponentArn"]}

    def _update_copies(self, params: Params) -> Record:
        name = params["InferenceComponentName"]
        record = self._resources.get(COMPONENT, name)
        count = params["DesiredRuntimeConfig"]["CopyCount"]
        self._resources.change(COMPONENT, name, RuntimeConfig={"CopyCount": count})
        self._endpoints.set_copies(record["EndpointName"], name, count)
        return {"InferenceComponentArn": record["InferenceComponentArn"]}

    def _delete_component(self, params: Params) -> Record:
        name = params["InferenceComponentName"]
        record = self._resources.get(COMPONENT, name)
        self._resources.delete(COMPONENT, name)
        self._endpoints.remove_component(record["EndpointName"], name)
        return {}

    def _create_job(self, params: Params) -> Record:
        return {"TransformJobArn": self._transforms.create(params)}

    def _stop_job(self, params: Params) -> Record:
        self._transforms.stop(params["TransformJobName"])
        return {}

    def _add_tags(self, params: Params) -> Record:
        self._resources.tag(params["ResourceArn"], params["Tags"])
        return {"Tags": self._resources.tags(params["ResourceArn"])}

    def _delete_tags(self, params: Params) -> Record:
        self._resources.untag(params["ResourceArn"], params["TagKeys"])
        return {}

    def _list_tags(self, params: Params) -> Record:
        return {"Tags": self._resources.tags(params["ResourceArn"])}


def _variant_summary(unit: Unit) -> Record:
    weight = unit.settings.get("InitialVariantWeight", 1.0)
    summary = {"VariantName": unit.name, "CurrentWeight": weight, "DesiredWeight": weight}
    if "ServerlessConfig" in unit.settings:
        return summary | {"CurrentServerlessConfig": unit.settings["ServerlessConfig"]}
    count = unit.settings.get("InitialInstanceCount", 1)
    return summary | {"CurrentInstanceCount": count, "DesiredInstanceCount": count}


def _check_variant(variant: Params, config: Params) -> None:
    name = variant["VariantName"]
    if "ServerlessConfig" in variant:
        if "InstanceType" in variant or "AsyncInferenceConfig" in config:
            raise control_validation(
                f"Variant {name}: ServerlessConfig excludes InstanceType and AsyncInferenceConfig."
            )
        return
    if "InstanceType" not in variant and "InstancePools" not in variant:
        raise control_validation(f"Variant {name}: InstanceType or ServerlessConfig is needed.")
    if "ModelName" in variant and "ManagedInstanceScaling" in variant:
        raise control_validation(
            "ManagedInstanceScaling is only supported for inference component endpoints."
        )
    if "ModelName" not in variant and "ExecutionRoleArn" not in config:
        raise control_validation("ExecutionRoleArn is required for inference component endpoints.")


def wait_in_service(control: ControlPlane, name: str, poll_s: float = 0.2) -> str:
    """Wait until an endpoint is up or has failed; return its failure reason, or nothing."""
    while True:
        record = control.act("DescribeEndpoint", {"EndpointName": name})
        if record["EndpointStatus"] in ("InService", "Failed"):
            return str(record.get("FailureReason") or "")
        time.sleep(poll_s)
