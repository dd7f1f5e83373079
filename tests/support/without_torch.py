"""A pytest plugin that shuts torch out, as the frontends do; `make test-quick` loads it.

So the units start fast, and a test of them that needs torch fails.
"""

import os
import sys

sys.modules["torch"] = None  # type: ignore[assignment]
os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would advise to install torch
