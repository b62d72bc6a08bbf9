"""The pages of the engine without a model: a free list and its arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable


class NullPages:
    """Counts pages as the real pool does; page 0 is scratch and never given out."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_usable = num_pages - 1
        self._page_size = page_size
        self._free = list(range(num_pages - 1, 0, -1))

    @property
    def num_free(self) -> int:
        """Count the pages that nobody holds."""
        return len(self._free)

    def needed(self, prompt_tokens: int, lengths: list[int]) -> int:
        """Return the pages of a prompt and of the outputs of its choices, given by length."""
        size = self._page_size
        return -(-prompt_tokens // size) + sum(-(-length // size) for length in lengths)

    def take(self, count: int) -> list[int]:
        """Take pages; the caller has looked whether there are as many."""
        return [self._free.pop() for _ in range(count)]

    def release(self, pages: list[int]) -> None:
        """Put pages back on the free list."""
        self._free.extend(pages)

    def check(self, held: Iterable[int]) -> None:
        """Raise IntegrityError unless free and held pages are each page of the pool once."""
        held = list(held)
        if sorted([*held, *self._free]) != list(range(1, self.num_usable + 1)):
            raise IntegrityError(
                f"{len(held)} held + {len(self._free)} free pages are not each of the"
                f" {self.num_usable} pages once"
            )
