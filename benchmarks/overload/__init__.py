"""Overload: refusals, and accepted requests beside them."""
