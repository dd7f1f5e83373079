"""The command line: one module for each command or small family, all over the same plain calls."""

from importlib.util import find_spec

# Slow to import, so commands import them when they run; a missing one is reported at the start.
for _name in ("boto3", "flask"):
    if find_spec(_name) is None:
        raise ModuleNotFoundError(f"No module named {_name!r}", name=_name)
