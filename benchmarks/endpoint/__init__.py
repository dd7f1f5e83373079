"""Load on any endpoint that streams text, and the report of what its clients saw."""
