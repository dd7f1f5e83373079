"""Clients of the processes behind the frontends, over ZeroMQ."""
