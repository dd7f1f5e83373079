"""Faults on purpose: what breaks around a running server, and what its clients see of it."""
