"""Prefix groups: running sequences that hold the same pages, which decode may read once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from tokenbus.engine.scheduling.plan import PrefillChunk
    from tokenbus.engine.scheduling.sequence import Sequence as DecodingSequence

# A tenant's prompt, then a campaign or conversation template under it.
MAX_LEVELS = 2


@dataclass(frozen=True, slots=True)
class SharedRun:
    """Batch rows whose page lists agree in [first_page, end_page)."""

    rows: tuple[int, ...]
    first_page: int
    end_page: int


@runtime_checkable
class PrefixSharing(Protocol):
    """An attention backend that can read runs of pages once for several rows."""

    def assign_runs(self, runs: Sequence[SharedRun]) -> None:
        """Read these runs together from the next pass on; rows are those of the decode batch.

        Called before every pass, for engines may share a backend: a list that is assigned already
        costs nothing.
        """
        ...

    @property
    def splits_answers(self) -> bool:
        """Whether a few tokens of an answer decode in a pass, in a row each that share its pages.

        A pass then has more decoding rows than there are sequences.
        """
        ...

    @property
    def has_runs(self) -> bool:
        """Whether the next pass reads any together: a captured pass serves one case alone."""
        ...

    def assuming_runs(self) -> AbstractContextManager[None]:
        """Take passes inside as if there were runs, so that their kernels are compiled."""
        ...

    def pays(self, num_rows: int, num_pages: int) -> bool:
        """Tell whether reading a run together beats reading it per row."""
        ...


class BatchGrouping:
    """Keeps the shared runs of the decoding batch, found anew only when the batch changes.

    While a sequence stays in the batch its full pages do not change, so neither do its runs; one
    that is preempted leaves the batch for at least a step.
    """

    def __init__(self, page_size: int, pays: Callable[[int, int], bool]) -> None:
        """Group rows by pages of `page_size` tokens where `pays(rows, pages)` says so."""
        self._page_size = page_size
        self._pays = pays
        self._batch: list[DecodingSequence] | None = None
        self._runs: list[SharedRun] = []

    def runs_of(
        self, seqs: list[DecodingSequence], answers: Sequence[PrefillChunk] = ()
    ) -> list[SharedRun]:
        """Return the runs of a batch: a row for each token of `answers`, then one for each of seqs.

        It is the same list as long as there are only these sequences.
        """
        if not answers and seqs == self._batch:
            return self._runs
        self._batch = None if answers else list(seqs)
        rows = [(chunk.seq, chunk.start) for chunk in answers for _ in range(chunk.num_tokens)]
        rows += ((seq, seq.num_computed - 1) for seq in seqs)
        # The page of the first token of a pass is still written.
        num_full = [start // self._page_size for _, start in rows]
        self._runs = find_shared_runs([seq.pages for seq, _ in rows], num_full, self._pays)
        return self._runs


def find_shared_runs(
    page_lists: Sequence[list[int]],
    num_full_pages: Sequence[int],
    pays: Callable[[int, int], bool],
) -> list[SharedRun]:
    """Group rows by their deepest common runs of pages, in at most two levels.

    Args:
        page_lists: pages of each batch row; num_full_pages: leading pages of each row that it will
            not write any more, at least one page being left behind them.
        pays: tells from (rows, pages) whether reading a run together beats reading it per row.
    Returns: runs that pay; a second-level run starts where the first-level run of its rows ends.
    """
    runs: list[SharedRun] = []
    rows = [row for row, count in enumerate(num_full_pages) if count > 0]
    for members in _split(rows, 0, page_lists, num_full_pages):
        _collect(members, 0, 0, 0, page_lists, num_full_pages, pays, runs)
    return runs


def _collect(
    members: list[int],
    first_page: int,
    depth: int,
    level: int,
    page_lists: Sequence[list[int]],
    num_full_pages: Sequence[int],
    pays: Callable[[int, int], bool],
    runs: list[SharedRun],
) -> None:
    end = _common_end(members, depth, page_lists, num_full_pages)
    if pays(len(members), end - first_page):
        runs.append(SharedRun(tuple(members), first_page, end))
        first_page = end
        level += 1
    if level == MAX_LEVELS:
        return
    # A run too short to pay may still be the head of longer ones of fewer rows.
    for part in _split(members, end, page_lists, num_full_pages):
        _collect(part, first_page, end, level, page_lists, num_full_pages, pays, runs)


def _split(
    members: list[int],
    page_idx: int,
    page_lists: Sequence[list[int]],
    num_full_pages: Sequence[int],
) -> list[list[int]]:
    """Return the sets of two or more members that hold the same page at `page_idx`."""
    parts: dict[int, list[int]] = {}
    for row in members:
        if num_full_pages[row] > page_idx:
            parts.setdefault(page_lists[row][page_idx], []).append(row)
    return [part for part in parts.values() if len(part) > 1]


def _common_end(
    members: list[int],
    depth: int,
    page_lists: Sequence[list[int]],
    num_full_pages: Sequence[int],
) -> int:
    """Return where the pages of all members stop being the same; they agree before `depth`."""
    reference = page_lists[members[0]]
    end = min(num_full_pages[row] for row in members)
    for row in members[1:]:
        pages = page_lists[row]
        if pages[depth:end] != reference[depth:end]:
            end = next(idx for idx in range(depth, end) if pages[idx] != reference[idx])
    return end
