"""Outcomes of a draw in place of a token, where a row of logits has none to draw."""

# A logit is NaN or +inf: the numbers are broken.
BROKEN_ROW = -1
# All logits are -inf: nothing is allowed.
EMPTY_ROW = -2
