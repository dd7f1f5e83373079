"""Embeddings and scores: the APIs of OpenAI, Cohere, Jina and vLLM."""
