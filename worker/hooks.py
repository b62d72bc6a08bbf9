"""Parts tell each other what happened through hooks; this is one that nobody has set."""

from __future__ import annotations


def nobody(*_: object) -> None:
    """Tell nobody."""
