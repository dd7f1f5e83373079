"""Calls of SageMaker's runtime API: signed, streamed, retried, in sticky sessions."""
