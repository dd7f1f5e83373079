"""The parts of a GPU day: each module has `cases`, which run in one process, one after another."""
