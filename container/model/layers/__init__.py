"""Layers that take the place of a model's own, because they are faster."""
