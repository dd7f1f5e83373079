"""Execution: runs a scheduled step on the model and samples from it."""
