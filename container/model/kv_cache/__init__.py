"""The paged KV cache on the device, and its blocks that wait in the host's memory."""
