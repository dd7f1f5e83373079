"""Commands for requests to endpoints: the proxy, and a replay of recorded requests."""
