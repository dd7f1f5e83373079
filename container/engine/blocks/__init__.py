"""The KV cache in plain ints: the block pool, offloaded blocks, pinned prefixes of sessions."""
