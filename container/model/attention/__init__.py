"""Attention: the metadata of a step, and its implementations."""
