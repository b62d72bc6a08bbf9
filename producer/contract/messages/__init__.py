"""Messages in answers: how a job's text is read as content, reasoning and calls, and told."""
