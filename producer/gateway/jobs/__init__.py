"""Jobs as the gateway has them: submitted, found again, streamed, and let go with their readers."""
