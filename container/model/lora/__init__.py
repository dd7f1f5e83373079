"""LoRA adapters: their files, their layers in a model, and which are in memory."""
