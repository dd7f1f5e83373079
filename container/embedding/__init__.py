"""The embedder: texts in, vectors or scores out; its queue, process and model interface."""
