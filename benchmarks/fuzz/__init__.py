"""A fuzz of every route: bodies and headers that no client should send."""
