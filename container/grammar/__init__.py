"""Grammars: what a completion must look like, and the masks that make it so; no torch."""
