"""The paged KV cache on the device, and its offloaded blocks in host memory."""
