"""Multiplies one tile by AMX: `python tile_probe.py LIBRARY`, in a process that may die of it.

Exits with 0 if Linux grants the tiles and the result is right. It imports nothing large, so that a
start waits for it some hundredths of a second.
"""

import ctypes
import sys


def main(library: str) -> int:
    """Return the exit code: 0, 1 for a wrong result, 2 if Linux refuses the tiles."""
    kernels = ctypes.CDLL(library)
    if kernels.use_tiles() < 0:
        return 2
    return 0 if kernels.try_tiles() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
