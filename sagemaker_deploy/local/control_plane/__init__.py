"""The control plane: records, live endpoints, batch transform jobs."""
