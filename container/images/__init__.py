"""Images of prompts: from bytes to the model's inputs, by Pillow and numpy. No torch."""
