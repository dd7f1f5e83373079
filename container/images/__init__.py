"""Images of prompts: from bytes to what the model takes, by Pillow and numpy. No torch."""
