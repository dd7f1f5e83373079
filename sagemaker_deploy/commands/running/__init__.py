"""Commands that change a running deployment: its size, its adapters, its pauses."""
