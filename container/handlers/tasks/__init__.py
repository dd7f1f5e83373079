"""Models for HF_TASK, without user code."""
