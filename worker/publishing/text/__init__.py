"""The text of a job: tokens to released text, tool calls, and all of it by index."""
