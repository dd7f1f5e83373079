"""The embedder: texts in, vectors or scores out; a queue and what a process needs of a model."""
