"""The message of a failed installation of a user's requirements."""

from container.handlers.requirements import _reason

CONFLICT = """\
Collecting numpy==1.0
INFO: pip is looking at multiple versions of pandas to determine which version is compatible
The conflict is caused by:
    The user requested numpy==1.26.0
    pandas 3.0 depends on numpy>=2.0
    The user requested (constraint) numpy==2.4.6

To fix this you could try to:
ERROR: Cannot install numpy==1.26.0 because these package versions have conflicting dependencies.
ERROR: ResolutionImpossible: for help visit https://pip.pypa.io/en/latest/topics/dependency-resolution/
"""


def test_a_conflict_names_both_sides_and_the_pin() -> None:
    reason = _reason(CONFLICT)
    assert "The user requested numpy==1.26.0" in reason
    assert "The user requested (constraint) numpy==2.4.6" in reason
    assert "pandas 3.0 depends on numpy>=2.0" in reason
    assert "the server's own package" in reason
    assert "ERROR: Cannot install numpy==1.26.0" in reason
    assert "Collecting" not in reason


def test_another_failure_keeps_pips_last_errors() -> None:
    assert _reason("Collecting a\nERROR: No matching distribution found for a==9\n") == (
        "ERROR: No matching distribution found for a==9"
    )
    assert _reason("killed\n") == "killed"
    assert _reason("") == ""
