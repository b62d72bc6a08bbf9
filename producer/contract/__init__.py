"""The contract on the wire: keys, requests, events and results, without a Redis client."""
