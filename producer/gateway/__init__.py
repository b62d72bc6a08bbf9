"""The gateway: OpenAI's HTTP API in front of the queue, as a producer like any other."""
