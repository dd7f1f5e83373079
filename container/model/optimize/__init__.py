"""Optimization: replaces a model's modules by faster forms that pass their checks."""
