"""From evidence to one cause and one remedy. Pure."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sagemaker_deploy.diagnosis.evidence import Evidence
from sagemaker_deploy.diagnosis.log_rules import IN_LOG, LOADING
from sagemaker_deploy.diagnosis.reason_rules import IN_REASON, PING_FAILED
from sagemaker_deploy.diagnosis.rule import Rule

# The default of SageMaker where no time-out is named.
DEFAULT_START_S = 480
# Reasons behind which the log may have the cause.
VAGUE = ("start command", "service")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause of a failure, what to do, and the line that shows it."""

    name: str
    cause: str
    remedy: str
    shown_by: str = ""


HEALTHY = Diagnosis("healthy", "nothing is wrong: it is in service", "nothing to do")


def diagnose(evidence: Evidence, start_s: int = DEFAULT_START_S) -> Diagnosis:
    """Find the cause. `start_s` is the time-out of the start, for the words of the remedy."""
    if not evidence.reasons and evidence.status in ("InService", ""):
        return HEALTHY
    log = [message_of(line) for line in evidence.log]
    has_failed_ping = any(PING_FAILED.search(reason) for reason in evidence.reasons)
    # A reason other than /ping's names the cause itself; the log then belongs to older containers.
    by_reason = _first(IN_REASON, evidence.reasons)
    if by_reason and by_reason.name not in VAGUE and not has_failed_ping:
        return by_reason
    if by_log := _last(IN_LOG, log) or _first(IN_LOG, evidence.reasons) or by_reason:
        return by_log
    if has_failed_ping:
        return _ping(evidence, log, start_s)
    if evidence.status == "Creating" and evidence.has_log is False:
        return _no_log("the container has written nothing yet", "")
    reason = evidence.reasons[0] if evidence.reasons else f"it is {evidence.status}"
    return Diagnosis(
        "unknown",
        f"no known cause: {reason}",
        f"read the log: sagemaker_deploy logs {evidence.name}",
        reason,
    )


def _ping(evidence: Evidence, log: list[str], start_s: int) -> Diagnosis:
    shown = next(iter(evidence.reasons), "")
    pings = evidence.pings
    if evidence.has_log is False:
        return _no_log("the container wrote nothing and did not answer /ping", shown)
    if pings and set(pings) & {400, 401, 403, 404, 405}:
        status = max(set(pings) & {400, 401, 403, 404, 405}, key=lambda code: pings[code])
        return Diagnosis(
            "ping route",
            f"the container answers GET /ping with {status}, {pings[status]} times",
            "make GET /ping on port 8080 answer 200 without a key while the model is ready",
            shown,
        )
    loading = [line for line in log if LOADING.search(line)]
    if loading:
        return Diagnosis(
            "start time-out",
            f"the model was still being loaded when {start_s} s were over",
            "raise health_check_timeout_s (3600 at most), put the files on S3 in the region "
            "(model.data), or take an instance with a faster disk",
            loading[-1][:300],
        )
    if pings and set(pings) <= {500, 502, 503, 504}:
        return Diagnosis(
            "never ready",
            "the server runs but never became ready: /ping answered "
            f"{', '.join(map(str, sorted(pings)))} only",
            f"read why in the log: sagemaker_deploy logs {evidence.name} --match ERROR",
            next((line for line in reversed(log) if "ping" not in line), shown)[:300],
        )
    return Diagnosis(
        "ping",
        "the container did not answer GET /ping on port 8080 with 200 in time",
        "run it on your machine (`sagemaker_deploy local --image ...`), and raise "
        "health_check_timeout_s if it only starts slowly",
        (log[-1] if log else shown)[:300],
    )


def _no_log(cause: str, shown: str) -> Diagnosis:
    return Diagnosis(
        "no log",
        f"{cause}: it was not started, or the host's driver does not fit the image",
        "set `cuda:` or `ami:` for the image's CUDA version, check the image's architecture with "
        "`plan`, and that the role may write logs (logs:CreateLogStream, logs:PutLogEvents)",
        shown,
    )


def message_of(line: str) -> str:
    """Return a log line's message: of JSON lines the field, with the exception."""
    line = line.strip()
    if not line.startswith("{"):
        return line
    try:
        value = json.loads(line)
    except ValueError:
        return line
    if not isinstance(value, Mapping):
        return line
    parts: list[Any] = [value.get("message"), value.get("msg"), value.get("exception")]
    return " ".join(str(part) for part in parts if part) or line


def _last(rules: Iterable[Rule], lines: list[str]) -> Diagnosis | None:
    """Apply the rules in order, each to the newest line first."""
    return _first(rules, list(reversed(lines)))


def _first(rules: Iterable[Rule], lines: Iterable[str]) -> Diagnosis | None:
    for rule in rules:
        for line in lines:
            if match := rule.pattern.search(line):
                return _diagnosis(rule, match, line)
    return None


def _diagnosis(rule: Rule, match: "re.Match[str]", line: str) -> Diagnosis:
    groups = {name: text or "" for name, text in match.groupdict().items()}
    cause = rule.cause.format(**groups) if groups else rule.cause
    return Diagnosis(rule.name, cause.rstrip(": "), rule.remedy, line.strip()[:500])
