"""Invocations: the runtime API's routes, and their execution by containers."""
