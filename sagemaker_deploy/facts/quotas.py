"""Reads how many instances of each type the account may use for endpoints (Service Quotas)."""

from collections.abc import Iterable

from sagemaker_deploy.aws import Aws
from sagemaker_deploy.errors import DeployError

SUFFIX = " for endpoint usage"


def endpoint_quotas(aws: Aws, instance_types: Iterable[str]) -> dict[str, float]:
    """Return the quotas of these types; a type is missing where nothing is known of it.

    Reads until it has all: the account has some two thousand quotas for SageMaker.
    """
    names = {f"{name}{SUFFIX}": name for name in instance_types}
    quotas: dict[str, float] = {}
    if not names:
        return quotas
    try:
        for page in aws.pages("service-quotas", "list_service_quotas", ServiceCode="sagemaker"):
            for quota in page["Quotas"]:
                if quota["QuotaName"] in names:
                    quotas[names[quota["QuotaName"]]] = float(quota["Value"])
            if len(quotas) == len(names):
                break
    except DeployError:  # no permission, or an imitation of AWS without this service
        return {}
    return quotas
