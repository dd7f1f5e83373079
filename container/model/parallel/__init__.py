"""Several devices: placement, tensor parallelism, and the ranks' processes."""
