"""Converts the decoder of an encoder-decoder to paged attention, after a probe and a check."""
