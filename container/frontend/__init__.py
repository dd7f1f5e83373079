"""The HTTP side: Flask on gunicorn. Strings and JSON; never torch, never the engine's code."""
