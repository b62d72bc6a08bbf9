"""Text on both sides of the model: prompts to ids, tokens to text, stop strings."""
