"""Telemetry: metrics, each declared once, with bounded labels; and traces."""
