"""Chat templates: programs of the model that run in processes with limits."""
