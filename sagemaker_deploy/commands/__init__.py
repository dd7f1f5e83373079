"""The command line: one module for each command or small family, all over the same plain calls."""
