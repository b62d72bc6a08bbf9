"""Columns of the packed table of rows: what the engine writes and the kernels read, by number."""

from __future__ import annotations

# Of float32, in this order.
FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
# Of int64. `key` and `increment` are those of the row's stream of uniforms; `num_biases` and
# `num_words` say how many entries of the row's lists count.
INTS = (
    "key",
    "increment",
    "top_k",
    "min_tokens",
    "is_random",
    "num_biases",
    "num_words",
)
