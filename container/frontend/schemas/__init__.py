"""Pydantic models of the request bodies, one module for each dialect."""
