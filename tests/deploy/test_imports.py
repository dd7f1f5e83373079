"""The command line starts without the libraries that only some commands need."""

import subprocess
import sys

SLOW = ("aiohttp", "boto3", "flask", "jinja2")
PROGRAM = f"""
import sys
import sagemaker_deploy.commands.main
print(*(name for name in {SLOW} if name in sys.modules))
"""


def test_the_command_line_starts_without_slow_libraries() -> None:
    argv = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
