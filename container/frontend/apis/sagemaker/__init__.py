"""SageMaker's API: invocations, batch transform, adapters, sessions."""
