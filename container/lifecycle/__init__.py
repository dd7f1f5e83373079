"""The life of the container: child processes, supervision, the startup report."""
