"""Chat templates: what they do with a conversation, and how it reaches the model by them."""
