"""The embedding model: encodes texts and computes their vectors or scores."""
