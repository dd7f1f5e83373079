"""The embedding model: ids of texts, and their vectors or scores."""
