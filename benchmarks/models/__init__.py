"""The random model."""
