"""A replay: recorded requests are sent to another endpoint, and the answers are compared."""
