"""Probes of a model's layers, and their comparison with the model's own pass."""
