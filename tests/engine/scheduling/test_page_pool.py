"""Pages: sharing by hash chain, eviction order, all-or-nothing allocation, exact counts."""

from __future__ import annotations

from array import array

import pytest

from tokenbus.engine.errors import IntegrityError, PagePoolExhausted
from tokenbus.engine.scheduling.page_pool import PagePool
from tokenbus.engine.scheduling.prefix_cache import chain_hash, root_hash


def hashes(token_ids: list[int], page_size: int, salt: str = "") -> list[bytes]:
    """Hash the full pages of a prompt."""
    chain, parent = [], root_hash(salt)
    for start in range(0, len(token_ids) - page_size + 1, page_size):
        parent = chain_hash(parent, array("i", token_ids[start : start + page_size]))
        chain.append(parent)
    return chain


def fill(pool: PagePool, token_ids: list[int], salt: str = "") -> list[int]:
    """Hold and hash the pages of a prompt, sharing what the pool has."""
    pages: list[int] = []
    chain = hashes(token_ids, pool.page_size, salt)
    for page_hash in chain:
        page_id = pool.lookup(page_hash)
        if page_id is None:
            break
        pool.share(page_id)
        pages.append(page_id)
    pages += pool.allocate(pool.pages_for(len(token_ids)) - len(pages))
    for page_id, page_hash in zip(pages, chain, strict=False):
        pool.register(page_id, page_hash)
    return pages


def test_prompt_takes_full_pages_hashed_and_a_partial_one_unhashed() -> None:
    """55 tokens hold four pages of 16; three have a hash, each is held once."""
    pool = PagePool(11, 16)
    pages = fill(pool, list(range(55)))
    assert len(pages) == 4
    assert [pool.prefixes.hash_of(p) is not None for p in pages] == [True, True, True, False]
    assert [pool.ref_count(p) for p in pages] == [1, 1, 1, 1]


def test_common_prefix_is_held_twice_and_costs_one_new_page() -> None:
    """A second prompt with the same 48 tokens shares three pages and takes one."""
    pool = PagePool(11, 16)
    first = fill(pool, list(range(55)))
    second = fill(pool, [*range(48), 100, 101, 102, 103, 104])
    assert second[:3] == first[:3]
    assert second[3] != first[3]
    assert [pool.ref_count(p) for p in second] == [2, 2, 2, 1]
    assert pool.num_free == 10 - 5


def test_released_pages_are_taken_unhashed_first_and_prefix_tail_before_head() -> None:
    """Free pages go first, then cached ones from the tail of the prefix to its head."""
    pool = PagePool(6, 16)
    pages = fill(pool, list(range(55)))
    pool.release(pages)
    assert pool.num_free == 2
    assert pool.num_evictable == 3
    taken = pool.allocate(5)
    assert set(taken[:2]) == {5, pages[3]}
    assert taken[2:] == [pages[2], pages[1], pages[0]]


def test_cached_pages_are_revived_when_their_prefix_comes_again() -> None:
    """Freed pages with a hash are shared again instead of computed again."""
    pool = PagePool(11, 16)
    first = fill(pool, list(range(55)))
    pool.release(first)
    again = fill(pool, list(range(48)))
    assert again == first[:3]
    assert pool.num_evictable == 0
    pool.check_integrity([again])


def test_eviction_forgets_the_hash() -> None:
    """A page that was taken over no longer answers for its old content."""
    pool = PagePool(3, 16)
    pages = fill(pool, list(range(32)))
    pool.release(pages)
    pool.allocate(2)
    assert all(pool.lookup(h) is None for h in hashes(list(range(32)), 16))
    assert len(pool.prefixes) == 0


def test_full_pool_of_cached_pages_is_taken_least_recently_used_first() -> None:
    """Ten new pages replace cached ones in eviction order: older prompts first, tails first."""
    pool = PagePool(13, 16)
    prompts = [list(range(start, start + 64)) for start in (0, 100, 200)]
    held = [fill(pool, prompt) for prompt in prompts]
    for pages in (held[1], held[0], held[2]):
        pool.release(pages)
    assert (pool.num_free, pool.num_evictable) == (0, 12)
    assert pool.allocate(10) == [*held[1][::-1], *held[0][::-1], held[2][3], held[2][2]]
    assert len(pool.prefixes) == 2
    assert all(pool.lookup(h) is None for prompt in prompts[:2] for h in hashes(prompt, 16))


def test_page_just_hit_is_not_evicted_for_the_same_sequence() -> None:
    """With two cached pages and a hit on the first, the second one is evicted."""
    pool = PagePool(3, 16)
    pages = fill(pool, list(range(32)))
    pool.release(pages)
    again = fill(pool, [*range(16), *range(100, 116)])
    assert again[0] == pages[0]
    assert again[1] == pages[1]
    assert pool.lookup(hashes(list(range(32)), 16)[1]) is None


def test_failed_allocation_changes_nothing() -> None:
    """Asking for more than there is raises with the numbers and leaves every count as it was."""
    pool = PagePool(5, 16)
    held = fill(pool, list(range(40)))
    with pytest.raises(PagePoolExhausted, match="2 pages asked for, 1 free and 0 evictable of 4"):
        pool.allocate(2)
    pool.check_integrity([held])
    assert pool.num_free == 1


def test_reset_is_refused_while_pages_are_held() -> None:
    """A reset forgets every hash, but only once nobody holds a page."""
    pool = PagePool(8, 16)
    pages = fill(pool, list(range(40)))
    assert not pool.reset_prefixes()
    assert len(pool.prefixes) == 2
    pool.release(pages)
    assert pool.reset_prefixes()
    assert len(pool.prefixes) == 0
    assert pool.num_free == 7


def test_salts_separate_and_equal_salts_share() -> None:
    """Tenants see their own pages only."""
    pool = PagePool(20, 16)
    first = fill(pool, list(range(32)), "shop-a")
    assert set(fill(pool, list(range(32)), "shop-b")).isdisjoint(first)
    assert fill(pool, list(range(32)), "shop-a") == first


def test_duplicate_content_resolves_until_the_last_page_goes() -> None:
    """Two pages with one hash: the hash survives the eviction of either, not of both."""
    pool = PagePool(4, 4)
    page_hash = hashes([1, 2, 3, 4], 4)[0]
    one, two = pool.allocate(2)
    pool.register(one, page_hash)
    pool.register(two, page_hash)
    pool.release([one])
    pool.allocate(2)
    assert pool.lookup(page_hash) == two
    pool.release([two])
    pool.allocate(1)
    assert pool.lookup(page_hash) is None


def test_double_release_is_an_error() -> None:
    """Releasing a page nobody holds raises instead of corrupting the free list."""
    pool = PagePool(4, 4)
    pages = pool.allocate(1)
    pool.release(pages)
    with pytest.raises(IntegrityError, match="ref count 0"):
        pool.release(pages)
    pool.check_integrity([])


def test_integrity_check_sees_a_leaked_page() -> None:
    """A page that no sequence lists is reported with its counts."""
    pool = PagePool(4, 4)
    pool.allocate(1)
    with pytest.raises(IntegrityError, match="held by 0"):
        pool.check_integrity([])
