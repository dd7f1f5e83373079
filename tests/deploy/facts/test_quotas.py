"""Quotas of Service Quotas: refused below the start, a warning below what may be needed."""

from collections.abc import Iterator
from typing import Any

import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy.errors import AccessDenied, ConfigError
from sagemaker_deploy.facts.quotas import endpoint_quotas
from sagemaker_deploy.plan.deploy import AccountState, plan
from tests.deploy.plan.cases import BASE


class Quotas:
    """The pages of ListServiceQuotas."""

    def __init__(self, *pages: dict[str, float]) -> None:
        self.pages_left = list(pages)

    def pages(self, service: str, operation: str, **params: Any) -> Iterator[dict[str, Any]]:
        assert (service, operation) == ("service-quotas", "list_service_quotas")
        assert params == {"ServiceCode": "sagemaker"}
        while self.pages_left:
            page = self.pages_left.pop(0)
            if not page:
                raise AccessDenied("no")
            yield {"Quotas": [{"QuotaName": name, "Value": n} for name, n in page.items()]}


def test_only_endpoint_quotas_are_read_until_all_are_known() -> None:
    account = Quotas(
        {"ml.g5.xlarge for training job usage": 9},
        {"ml.g5.xlarge for endpoint usage": 2},
        {"ml.g5.xlarge for processing job usage": 9},
    )
    assert endpoint_quotas(account, ["ml.g5.xlarge"]) == {"ml.g5.xlarge": 2}  # type: ignore[arg-type]
    assert len(account.pages_left) == 1


def test_nothing_is_known_without_permission() -> None:
    assert endpoint_quotas(Quotas({}), ["ml.g5.xlarge"]) == {}  # type: ignore[arg-type]
    assert endpoint_quotas(Quotas({}), []) == {}  # type: ignore[arg-type]


def _planned(quota: float, **changes: Any) -> list[str]:
    config = configuration.parse(BASE | changes)
    state = AccountState("us-east-1", "0" * 12, quotas={"ml.g5.2xlarge": quota})
    return [text for text in plan(config, state).warnings if text.startswith("quota")]


def test_fewer_than_the_start_needs_is_refused() -> None:
    with pytest.raises(ConfigError, match="instance_count: 2 of ml"):
        _planned(1, instance_count=2)
    with pytest.raises(ConfigError, match="may use 0 for endpoints"):
        _planned(0)


def test_fewer_than_scaling_or_an_update_may_need_is_a_warning() -> None:
    assert "may need 2" in _planned(1)[0]
    assert _planned(1, update={"strategy": "rolling"}) == []
    assert "may need 4" in _planned(3, scaling={"max": 4, "target_concurrency": 8})[0]
    assert _planned(4, scaling={"max": 4, "target_concurrency": 8}) == []
