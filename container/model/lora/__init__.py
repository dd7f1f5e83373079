"""LoRA adapters: checkpoints, layers and the manager of loaded adapters."""
