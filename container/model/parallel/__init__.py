"""Several devices: placement, tensor parallelism, and the rank processes."""
