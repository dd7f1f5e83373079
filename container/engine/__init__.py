"""The engine: token ids in, token events out; knows neither tensors nor text."""
