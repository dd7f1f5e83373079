"""The caches in plain ints: the block pool, offloaded blocks, pinned prefixes, state slots."""
