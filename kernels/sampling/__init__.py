"""Filter and draw: from logits to one token a row."""
