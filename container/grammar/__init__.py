"""Structured output: grammars and the token bitmasks that enforce them; no torch."""
