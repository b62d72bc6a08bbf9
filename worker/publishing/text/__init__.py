"""The text of a job by index, and the messages in it as they are told."""
