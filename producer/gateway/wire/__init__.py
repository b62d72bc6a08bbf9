"""OpenAI's wire as plain builders: errors, chunks, usage and frames of server-sent events."""
