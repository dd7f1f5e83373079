"""Recorded failures, each of which has one cause and one remedy."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sagemaker_deploy.diagnosis.diagnose import diagnose, message_of
from sagemaker_deploy.diagnosis.evidence import Evidence
from sagemaker_deploy.diagnosis.log_rules import IN_LOG
from sagemaker_deploy.diagnosis.reason_rules import IN_REASON

FAILURES = yaml.safe_load(Path(__file__).with_name("failures.yaml").read_text())


def _evidence(failure: dict[str, Any]) -> Evidence:
    log = tuple(failure.get("log", ()))
    has_log = failure.get("has_log", True if log else None)
    return Evidence("chat", "Failed", (failure["reason"],), log, has_log)


def test_there_are_thirty_failures_and_more() -> None:
    assert len(FAILURES) >= 30
    assert len({failure["cause"] for failure in FAILURES}) >= 30


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure["title"])
def test_a_recorded_failure_has_its_cause(failure: dict[str, Any]) -> None:
    result = diagnose(_evidence(failure))
    assert result.name == failure["cause"], result
    assert len(result.cause.split()) > 3
    assert len(result.remedy.split()) > 3
    assert "{" not in result.cause + result.remedy.replace("{HF_TOKEN: ...}", "")


def test_every_rule_has_a_failure_or_is_of_a_group_that_has() -> None:
    tested = {failure["cause"] for failure in FAILURES}
    names = [rule.name for rule in (*IN_LOG, *IN_REASON)]
    assert len(names) == len(set(names))
    assert set(names) - tested <= {"zone"}


def test_a_reason_that_names_the_cause_wins_over_an_older_log() -> None:
    failure = next(one for one in FAILURES if one["title"] == "no capacity for an endpoint")
    assert diagnose(_evidence(failure)).name == "capacity"


def test_the_root_cause_wins_over_what_follows_from_it() -> None:
    log = (
        "torch.OutOfMemoryError: CUDA out of memory.",
        '10.0.0.1 - - "GET /ping HTTP/1.1" 503 -',
        '{"message": "the container ends with exit code 4: engine keeps dying"}',
    )
    evidence = Evidence("chat", "Failed", ("did not pass the ping health check",), log, True)
    result = diagnose(evidence)
    assert result.name == "gpu memory"
    assert result.shown_by.startswith("torch.OutOfMemoryError")


def test_the_newest_line_of_a_cause_is_shown() -> None:
    log = ("Errno 28: No space left on device: a", "Errno 28: No space left on device: b")
    evidence = Evidence("chat", "Failed", ("did not pass the ping health check",), log, True)
    assert diagnose(evidence).shown_by.endswith("b")


def test_an_endpoint_in_service_has_nothing_wrong() -> None:
    assert diagnose(Evidence("chat", "InService", log=("CUDA out of memory",))).name == "healthy"


def test_an_unknown_failure_shows_its_log() -> None:
    result = diagnose(Evidence("chat", "Failed", ("the moon was full",), has_log=True))
    assert result.name == "unknown"
    assert "the moon was full" in result.cause


def test_pings_are_counted_by_status() -> None:
    log = (
        '10.0.0.1 - - [x] "GET /ping HTTP/1.1" 503 3 "-" "AHC/2.0"',
        'INFO: 10.0.0.1:1 - "GET /ping HTTP/1.1" 200 OK',
        "GET /ping 503",
        "POST /invocations 200",
    )
    assert Evidence("chat", log=log).pings == {503: 2, 200: 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"message": "a", "exception": "b"}', "a b"),
        ('{"msg": "a"}', "a"),
        ('{"other": 1}', '{"other": 1}'),
        ("{broken", "{broken"),
        ("  plain ", "plain"),
    ],
)
def test_a_line_of_json_is_read_by_its_message(line: str, message: str) -> None:
    assert message_of(line) == message
