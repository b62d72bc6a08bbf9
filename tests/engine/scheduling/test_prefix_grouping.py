"""Shared runs: found from page lists alone, in two levels, and only where they pay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenbus.engine.scheduling.prefix_grouping import SharedRun, find_shared_runs


def always(num_rows: int, num_pages: int) -> bool:
    """Any run of any length pays."""
    return num_rows > 1 and num_pages > 0


def test_rows_of_one_prompt_form_one_run() -> None:
    """Three rows with four common pages and an odd one give one run of three rows."""
    pages = [[1, 2, 3, 4, 10], [1, 2, 3, 4, 11], [9, 8], [1, 2, 3, 4, 12, 13]]
    assert find_shared_runs(pages, [4, 4, 1, 5], always) == [SharedRun((0, 1, 3), 0, 4)]


def test_template_under_a_tenant_prompt_is_a_second_level() -> None:
    """Rows share two pages; two pairs among them share two more each."""
    pages = [[1, 2, 3, 4, 10], [1, 2, 3, 4, 11], [1, 2, 5, 6, 12], [1, 2, 5, 6, 13]]
    assert find_shared_runs(pages, [4] * 4, always) == [
        SharedRun((0, 1, 2, 3), 0, 2),
        SharedRun((0, 1), 2, 4),
        SharedRun((2, 3), 2, 4),
    ]


def test_short_common_head_does_not_hide_longer_runs() -> None:
    """Where the page common to all does not pay, the longer runs under it begin at page 0."""
    pages = [[1, 2, 3, 4, 10], [1, 2, 3, 4, 11], [1, 5, 6, 7, 12], [1, 5, 6, 7, 13]]
    assert find_shared_runs(pages, [4] * 4, lambda _rows, num_pages: num_pages >= 2) == [
        SharedRun((0, 1), 0, 4),
        SharedRun((2, 3), 0, 4),
    ]


def test_pages_still_written_are_not_shared() -> None:
    """A run ends before the first page that a member may still write."""
    pages = [[1, 2, 3], [1, 2, 3]]
    assert find_shared_runs(pages, [2, 1], always) == [SharedRun((0, 1), 0, 1)]


@given(st.data())
def test_every_run_is_common_to_its_rows_and_levels_join(data: st.DataObject) -> None:
    """Whatever the lists: rows of a run hold the same pages, and levels follow without a gap."""
    tree = st.lists(st.integers(0, 2), min_size=1, max_size=6)
    tails = data.draw(st.lists(tree, min_size=1, max_size=12))
    # A page id stands for a whole prefix, as it does in a pool.
    page_lists = [[hash(tuple(tail[: i + 1])) for i in range(len(tail))] for tail in tails]
    limits = [len(pages) - 1 for pages in page_lists]
    threshold = data.draw(st.integers(1, 8))
    runs = find_shared_runs(page_lists, limits, lambda rows, pages: rows * pages >= threshold)
    reached = [0] * len(page_lists)
    levels = [0] * len(page_lists)
    for run in runs:
        assert len(run.rows) > 1
        assert len(run.rows) * (run.end_page - run.first_page) >= threshold
        first = page_lists[run.rows[0]][: run.end_page]
        for row in run.rows:
            assert page_lists[row][: run.end_page] == first
            assert run.end_page <= limits[row]
            assert reached[row] == run.first_page
            reached[row] = run.end_page
            levels[row] += 1
    assert max(levels) <= 2
