"""Telemetry: metrics declared once, with bounded labels, and how scrapes and probes are answered."""
