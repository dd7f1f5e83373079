"""Settings: read once from the environment, checked, and printed for people."""
