"""AWS's refusals as one line with what to do."""

import pytest
from botocore import exceptions as aws_errors

from sagemaker_deploy import errors
from sagemaker_deploy.aws import Aws, translated


def _refused(code: str, message: str) -> aws_errors.ClientError:
    return aws_errors.ClientError({"Error": {"Code": code, "Message": message}}, "CreateEndpoint")


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (_refused("ResourceLimitExceeded", "0 Instances"), errors.QuotaExceeded, "Service Quotas"),
        (_refused("ThrottlingException", "Rate exceeded"), errors.Throttled, "throttles"),
        (_refused("AccessDeniedException", "not authorized"), errors.AccessDenied, "permissions"),
        (_refused("ValidationException", "Could not find model x"), errors.NotFound, ""),
        (_refused("ValidationException", "bad name"), errors.AwsError, ""),
        (aws_errors.NoCredentialsError(), errors.AccessDenied, "aws configure"),
        (
            aws_errors.EndpointConnectionError(endpoint_url="http://x"),
            errors.AwsError,
            "AWS_ENDPOINT_URL",
        ),
        (
            aws_errors.ParamValidationError(report="Missing EndpointName"),
            errors.ConfigError,
            "",
        ),
    ],
)
def test_a_refusal_is_one_line_with_a_hint(
    error: Exception, kind: type[errors.DeployError], hint: str
) -> None:
    cli_error = translated(error, "sagemaker create_endpoint")
    assert type(cli_error) is kind
    assert "\n" not in cli_error.message
    assert cli_error.message.startswith("sagemaker create_endpoint: ")
    assert hint in cli_error.hint


def test_every_kind_of_error_has_an_exit_code_of_its_own() -> None:
    def leaves(root: type[errors.DeployError]) -> list[type[errors.DeployError]]:
        return [root, *(leaf for child in root.__subclasses__() for leaf in leaves(child))]

    families = errors.DeployError.__subclasses__()
    codes = [family.exit_code for family in families]
    assert len(set(codes)) == len(codes)
    assert 0 not in codes
    for family in families:
        assert {leaf.exit_code for leaf in leaves(family)} == {family.exit_code}


def test_a_missing_region_says_how_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(errors.ConfigError, match="--region"):
        Aws()


def test_an_unknown_profile_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    with pytest.raises(errors.ConfigError, match="nobody"):
        Aws("us-east-1", "nobody")
