"""Supervision: child processes, restarts, shutdown and the startup report."""
