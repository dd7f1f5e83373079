"""Sampling: from logits to the next tokens, on the host or on the device."""
