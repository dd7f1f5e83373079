"""Invocations: the runtime API's routes, and how a container carries them out."""
