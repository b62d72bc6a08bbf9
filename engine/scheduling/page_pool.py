"""The page pool: reference counts, the free list and the order of eviction.

A page is in exactly one of three places:

    held        ref > 0                    owned by one or more sequences
    free        ref = 0, no hash           taken first, in the order it came back
    evictable   ref = 0, hash              taken last, least recently used first

Page 0 is scratch: padded rows write there, nobody holds it, and it is in none of the three.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from tokenbus.engine.errors import IntegrityError, PagePoolExhausted
from tokenbus.engine.scheduling.prefix_cache import PageHash, PrefixCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SCRATCH_PAGE = 0


class PagePool:
    """The pages of one KV cache, all operations O(1) per page."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        """Create a pool of `num_pages` pages, scratch included, of `page_size` tokens."""
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefixes = PrefixCache()
        # Returns a page that holds a content, held or evictable; asked for every page of a prompt.
        self.lookup: Callable[[PageHash], int | None] = self.prefixes.lookup
        self._refs = [0] * num_pages
        self._free = deque(range(1, num_pages))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        # Pages that more than one sequence holds.
        self.num_shared = 0

    @property
    def num_usable(self) -> int:
        """Pages that sequences can hold."""
        return self.num_pages - 1

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def num_evictable(self) -> int:
        """Pages that hold a prefix nobody runs on."""
        return len(self._evictable)

    @property
    def num_available(self) -> int:
        """Pages an allocation can get."""
        return len(self._free) + len(self._evictable)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold `num_tokens` tokens."""
        return -(-num_tokens // self.page_size)

    def ref_count(self, page_id: int) -> int:
        """Return how many sequences hold a page."""
        return self._refs[page_id]

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages with ref 1, all or none.

        Raises: PagePoolExhausted if fewer are free or evictable; nothing has changed then.
        """
        if count > self.num_available:
            raise PagePoolExhausted(
                f"{count} pages asked for, {self.num_free} free and {self.num_evictable} evictable"
                f" of {self.num_usable}; wait for a sequence to end or preempt one"
            )
        take_free, refs = self._free.popleft, self._refs
        pages = [take_free() for _ in range(min(count, len(self._free)))]
        for _ in range(count - len(pages)):
            page_id, _ = self._evictable.popitem(last=False)
            self.prefixes.drop(page_id)
            pages.append(page_id)
        for page_id in pages:
            refs[page_id] = 1
        return pages

    def share(self, page_id: int) -> None:
        """Hold a page that is held already or evictable (a prefix hit)."""
        refs = self._refs[page_id]
        if refs == 0:
            del self._evictable[page_id]
        elif refs == 1:
            self.num_shared += 1
        self._refs[page_id] = refs + 1

    def release(self, pages: Sequence[int]) -> None:
        """Give back one reference to each page of a sequence, given from head to tail.

        The tail comes back first, so that it is evicted before the head it depends on.
        """
        counts, hash_of, evictable = self._refs, self.prefixes.hash_of, self._evictable
        for page_id in reversed(pages):
            refs = counts[page_id]
            if refs <= 0:
                raise IntegrityError(f"page {page_id} released with ref count {refs}")
            counts[page_id] = refs - 1
            if refs == 1:
                if hash_of(page_id) is None:
                    self._free.append(page_id)
                else:
                    evictable[page_id] = None
            elif refs == 2:
                self.num_shared -= 1

    def register(self, page_id: int, page_hash: PageHash) -> None:
        """Give a held, full page its hash; from now on it is never written."""
        if self._refs[page_id] == 0:
            raise IntegrityError(f"page {page_id} gets a hash while nobody holds it")
        self.prefixes.insert(page_id, page_hash)

    def drop_hashes(self, pages: Iterable[int]) -> None:
        """Take the hash from held pages whose content is not to be trusted."""
        for page_id in pages:
            if self._refs[page_id] == 0:
                raise IntegrityError(f"page {page_id} loses its hash while nobody holds it")
            self.prefixes.drop(page_id)

    def reset_prefixes(self) -> bool:
        """Forget every prefix; refuse (False, nothing changed) while any page is held."""
        if self.num_available != self.num_usable:
            return False
        self.prefixes.clear()
        self._free.extend(self._evictable)
        self._evictable.clear()
        return True

    def check_integrity(self, holders: Iterable[Sequence[int]]) -> None:
        """Compare the pool with the page lists of all live sequences.

        Raises: IntegrityError with the numbers if free + evictable + held is not the total, or a
            reference count differs from the number of sequences that hold the page.
        """
        expected = [0] * self.num_pages
        for pages in holders:
            for page_id in pages:
                expected[page_id] += 1
        if expected[SCRATCH_PAGE]:
            raise IntegrityError(f"{expected[SCRATCH_PAGE]} sequences hold the scratch page")
        wrong = [p for p in range(self.num_pages) if expected[p] != self._refs[p]]
        if wrong:
            page_id = wrong[0]
            raise IntegrityError(
                f"{len(wrong)} ref counts are wrong, first page {page_id}:"
                f" counted {self._refs[page_id]}, held by {expected[page_id]}"
            )
        self._check_shared()
        num_held = sum(1 for refs in self._refs if refs)
        total = self.num_free + self.num_evictable + num_held
        free = set(self._free)
        if total != self.num_usable or len(free) != self.num_free or free & set(self._evictable):
            raise IntegrityError(
                f"{self.num_free} free + {self.num_evictable} evictable + {num_held} held"
                f" = {total}, not {self.num_usable}"
            )
        for page_id in self._evictable:
            if self.prefixes.hash_of(page_id) is None or self._refs[page_id]:
                raise IntegrityError(f"page {page_id} is evictable but held or without a hash")
        for page_id in self._free:
            if self.prefixes.hash_of(page_id) is not None or self._refs[page_id]:
                raise IntegrityError(f"page {page_id} is free but held or still has a hash")

    def _check_shared(self) -> None:
        num_shared = sum(1 for refs in self._refs if refs > 1)
        if num_shared != self.num_shared:
            raise IntegrityError(f"{self.num_shared} shared pages counted, {num_shared} are shared")
