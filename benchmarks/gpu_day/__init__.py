"""The first minutes on a GPU: all that only a GPU can show, in one command and one report."""
