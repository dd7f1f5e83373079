"""Metrics for Prometheus and traces over OTLP."""
