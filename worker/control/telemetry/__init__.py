"""The telemetry of a control process: its metrics, those of the pool, and its probes."""
