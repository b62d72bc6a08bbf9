"""Refusals of a schema: each names the keyword, its place as a JSON pointer, and the reason."""

from __future__ import annotations

from tokenbus.engine.errors import GrammarRejected

Path = tuple[str, ...]


def pointer(path: Path) -> str:
    """Spell a JSON pointer as a fragment."""
    return "#" + "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in path)


def refusal(keyword: str, path: Path, reason: str) -> GrammarRejected:
    """Build the refusal of a keyword."""
    return GrammarRejected(
        "grammar", f"JSON schema keyword {keyword!r} at {pointer(path)}: {reason}"
    )


# Steps for the schemas of one request that are read before any process of trials has them: those of
# the parameters of its tools together. A union of 300 objects with a tag takes 12,000.
CALL_STEPS = 40_000


class StepBudget:
    """Counts the steps of the work on one schema or several, so that it ends: 5 to 10 us each.

    The most that a schema of 262,144 characters without any rewriting took was 30,000 steps.
    """

    def __init__(self, num_steps: int = 200_000) -> None:
        self._left = num_steps

    def spend(self, path: Path, num_steps: int = 1) -> None:
        """Count steps. Raises: GrammarRejected if none are left."""
        self._left -= num_steps
        if self._left < 0:
            raise GrammarRejected(
                "grammar", f"JSON schema at {pointer(path)}: combining it takes too many steps"
            )
