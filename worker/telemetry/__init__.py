"""Telemetry: metrics of a worker for Prometheus."""
