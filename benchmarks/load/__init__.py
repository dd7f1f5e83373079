"""Load over HTTP: prompts, requests and the clients that send them."""
