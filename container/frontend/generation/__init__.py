"""The work behind prompts, messages, images and texts, for every API."""
