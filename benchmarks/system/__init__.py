"""The machine, and the processes that are measured."""
