"""Logprobs on the wire: one entry per token id, beside the ids of an event or a choice.

An entry is `[logprob, rank, [[id, logprob] …]]`: the token's own log-probability under the raw
distribution, its rank in it (1 = most probable), and the alternatives that were asked for. A fourth
element, `true`, marks a token that a grammar forced; readers who do not know it leave it out. A
list is empty where no logprobs were asked for. `null` stands for an entry that is not known.

Earlier workers wrote no entries for forced tokens and joined the others without a gap, so that a
list which is too short does not say which tokens it speaks of: none of its entries is believed. One
that has as many entries as there are ids is, for nearly all jobs had no grammar.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def per_token(logprobs: Sequence[Any], num_ids: int) -> tuple[Any, ...]:
    """Return a list that was read as one entry per token id, or empty."""
    if logprobs and len(logprobs) != num_ids:
        return (None,) * num_ids
    return tuple(logprobs)


def extend_column(
    column: list[Any], num_before: int, logprobs: Sequence[Any], num_new: int
) -> None:
    """Add the entries of `num_new` tokens, or none, to the column of the `num_before` before them.

    A column has an entry per token once one of them has any.
    """
    if not logprobs and not column:
        return
    column.extend([None] * (num_before - len(column)))
    column.extend(per_token(logprobs, num_new) or [None] * num_new)
