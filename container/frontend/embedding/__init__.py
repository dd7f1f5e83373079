"""Texts as vectors and scores: requests to the embedder, and the arithmetic of its rows."""
