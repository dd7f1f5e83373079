"""Loading: from a model's files to a checked model, its kernels and its memory."""
