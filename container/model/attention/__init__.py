"""Attention: the metadata of a step, and the ways to compute it."""
