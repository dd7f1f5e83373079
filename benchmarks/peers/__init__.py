"""The other engines: their environments, processes and converted models."""
