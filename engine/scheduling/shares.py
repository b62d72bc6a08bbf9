"""Shares of a step: how its prompt tokens are split over the prompts that wish for them."""

from __future__ import annotations

# How many long prompts a step's tokens are split between at most, how many of a step so large that
# a part has as many tokens as most prompts, and how small a part may be.
_MAX_SHARES, _MANY_SHARES = 4, 16
_LARGE_SHARE_TOKENS, _LEAST_SHARE_TOKENS = 2048, 16


def choose_wishes(wanted: list[int], budget: int) -> list[int]:
    """Return the places of the wishes that share `budget`, first come first, in their order.

    Shares of a few tokens would bring all prompts of a crowd to their first token at the end, in
    chunks that use a tile of the attention badly: as many take part as can have a quarter of the
    budget, of a large one 2,048 tokens, or all they wish. Wishes for more leave half of it to
    shorter ones behind them.
    """
    least = _least_share(budget)
    room, long_room = budget, budget // 2
    chosen: list[int] = []
    passed: list[int] = []
    for idx, wish in enumerate(wanted):
        part = min(wish, least)
        if room < part:
            chosen += [idx] * (room >= _LEAST_SHARE_TOKENS)
            room = 0
            break
        if wish > least and long_room < part:
            passed.append(idx)
            continue
        chosen.append(idx)
        room -= part
        long_room -= part if wish > least else 0
    for idx in passed:
        if room < least:
            break
        chosen.append(idx)
        room -= least
    # Whatever the budget is, somebody goes on.
    return sorted(chosen) or [0] * bool(wanted)


def crowd_shares(wanted: list[int], budget: int) -> list[int]:
    """Split `budget` over wishes that were chosen for it: first what each was chosen for, in turn.

    So the last in line may get less than it wishes, and nobody else's prompt is cut for it; what is
    left is shared out fairly.
    """
    least = _least_share(budget)
    first = shares_in_turn([min(wish, least) for wish in wanted], budget)
    more = [wish - share for wish, share in zip(wanted, first, strict=True)]
    rest = fair_shares(more, budget - sum(first))
    return [share + part for share, part in zip(first, rest, strict=True)]


def _least_share(budget: int) -> int:
    """Return the tokens that a long prompt may have of a step before others join it."""
    large = min(_LARGE_SHARE_TOKENS, budget // _MAX_SHARES)
    return max(_LEAST_SHARE_TOKENS, budget // _MANY_SHARES, large)


def fair_shares(wanted: list[int], budget: int) -> list[int]:
    """Split `budget` so that small wishes are met in full and large ones get equal parts.

    Whole tokens; the remainder of a division goes to the first in line.
    """
    shares = [0] * len(wanted)
    left = budget
    by_size = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    for rank, idx in enumerate(by_size):
        part = left // (len(by_size) - rank)
        shares[idx] = min(wanted[idx], part)
        left -= shares[idx]
    for idx, wish in enumerate(wanted):
        if left <= 0:
            break
        extra = min(left, wish - shares[idx])
        shares[idx] += extra
        left -= extra
    return shares


def shares_in_turn(wanted: list[int], budget: int) -> list[int]:
    """Split `budget` so that the first in line has its wish before the next one gets anything."""
    shares = []
    for wish in wanted:
        shares.append(min(wish, budget))
        budget -= shares[-1]
    return shares
