"""Compiled kernels: C for CPUs, Triton for GPUs. Imports nothing of the model."""
