"""The server's end of the ZeroMQ sockets between frontends and backend processes."""
