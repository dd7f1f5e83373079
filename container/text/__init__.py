"""Text to ids and back: tokenizer, chat template, detokenizer, stop strings. No torch."""
