"""Rules, filters, draw and scores: from logits to one token a row."""
