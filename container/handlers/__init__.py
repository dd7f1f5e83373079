"""User code behind `/invocations`: processes of their own that run `code/inference.py`."""
