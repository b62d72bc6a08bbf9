"""Draw one token per row from logits: argmax, or inverse CDF over what the filters keep."""

from __future__ import annotations
