"""The server inside the image: supervisor, HTTP frontends and the engine."""

__version__ = "0.1.0"
