"""Earlier messages, rewritten so that a chat template renders all of them."""
