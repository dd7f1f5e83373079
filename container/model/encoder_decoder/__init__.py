"""Encoder-decoders: a thread that encodes prompts, and the decoder over the rows of a step."""
