"""Prompts with images: the inputs of a vision-language model's language model."""
