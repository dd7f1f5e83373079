"""Checkpoints whose weights have four or eight bits: GGUF, AWQ, GPTQ, compressed-tensors."""
