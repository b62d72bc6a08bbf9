"""The control service: crons, webhooks and the bridge for backends on arq; no engine, no torch."""
