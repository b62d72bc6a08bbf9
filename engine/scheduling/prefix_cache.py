"""The prefix cache: a hash chain over full pages, from prefix to page."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array

PageHash = bytes


def root_hash(salt: str) -> PageHash:
    """Start a chain; different salts never share a page."""
    return blake2b(salt.encode(), digest_size=16).digest()


def chain_hash(parent: PageHash, token_ids: array[int]) -> PageHash:
    """Hash one full page given the hash of everything before it."""
    return blake2b(parent + token_ids.tobytes(), digest_size=16).digest()


class PrefixCache:
    """Two-way index between page hashes and the pages that hold them.

    Several pages may hold the same content; a hash resolves until the last of them is forgotten.
    """

    def __init__(self) -> None:
        # Nearly every content lies in one page: the others have a table of their own, for a
        # container per page would keep Python's collector busy.
        self._page_of: dict[PageHash, int] = {}
        self._others_of: dict[PageHash, list[int]] = {}
        self._hash_of: dict[int, PageHash] = {}

    def __len__(self) -> int:
        """Number of pages with a hash."""
        return len(self._hash_of)

    def __contains__(self, page_hash: PageHash) -> bool:
        """Tell whether some page holds this content."""
        return page_hash in self._page_of

    def lookup(self, page_hash: PageHash) -> int | None:
        """Return a page that holds this content."""
        return self._page_of.get(page_hash)

    def hash_of(self, page_id: int) -> PageHash | None:
        """Return the hash of a page, if it has one."""
        return self._hash_of.get(page_id)

    def insert(self, page_id: int, page_hash: PageHash) -> None:
        """Record what a full page holds; a page keeps its first hash until it is forgotten."""
        if page_id in self._hash_of:
            return
        self._hash_of[page_id] = page_hash
        if self._page_of.setdefault(page_hash, page_id) != page_id:
            self._others_of.setdefault(page_hash, []).append(page_id)

    def drop(self, page_id: int) -> None:
        """Drop a page from the index (no-op if it has no hash)."""
        page_hash = self._hash_of.pop(page_id, None)
        if page_hash is None:
            return
        others = self._others_of.get(page_hash)
        if others is None:
            del self._page_of[page_hash]
            return
        if self._page_of[page_hash] == page_id:
            self._page_of[page_hash] = others.pop(0)
        else:
            others.remove(page_id)
        if not others:
            del self._others_of[page_hash]

    def clear(self) -> list[int]:
        """Forget everything and return the pages that had a hash."""
        pages = list(self._hash_of)
        self._hash_of.clear()
        self._page_of.clear()
        self._others_of.clear()
        return pages
