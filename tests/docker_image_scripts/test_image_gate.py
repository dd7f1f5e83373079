"""image/audit/gate.py: which vulnerabilities end a build."""

from datetime import date

import pytest

from image.audit.gate import refusals

TODAY = date(2026, 11, 20)
REASON = {"reason": "never called"}


def _report(severity: str) -> dict:
    vulnerability = {"id": "CVE-1", "ratings": [{"severity": "none"}, {"severity": severity}]}
    return {"sbom": {"vulnerabilities": [vulnerability | {"affects": [{"ref": "pkg:pypi/x@1"}]}]}}


@pytest.mark.parametrize(("severity", "refused"), [("critical", 1), ("high", 1), ("medium", 0)])
def test_critical_and_high_vulnerabilities_are_refused_by_name(severity: str, refused: int) -> None:
    lines = refusals(_report(severity), {}, TODAY)
    assert lines == [f"{severity}: CVE-1 in pkg:pypi/x@1"] * refused


def test_an_accepted_vulnerability_passes_until_its_last_day() -> None:
    assert not refusals(_report("high"), {"CVE-1": REASON | {"until": TODAY}}, TODAY)
    (late,) = refusals(_report("high"), {"CVE-1": REASON | {"until": date(2026, 11, 19)}}, TODAY)
    assert "was accepted until 2026-11-19" in late


def test_a_clean_report_passes() -> None:
    assert not refusals({"sbom": {}}, {}, TODAY)
