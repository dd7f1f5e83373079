"""Injects faults around a running server, and records what its clients see of them."""
