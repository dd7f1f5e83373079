"""User code behind `/invocations`: separate processes that run `code/inference.py`."""
