"""OpenAI's responses as plain builders: requests, items, events and objects, without a route."""
