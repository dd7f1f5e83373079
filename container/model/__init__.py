"""The model: the only package that imports torch."""
