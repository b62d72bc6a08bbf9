"""Everything a job has generated, by token index: what the log holds and what it still lacks.

It stays in memory until the job has ended, so that a log which lost its last writes can be
re-appended from any index.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.producer.events import Event
from tokenbus.producer.result import Choice, JobResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenbus.producer.events import Finish


# Choice, first index, text, ids, ends and logprobs of the tokens of one entry.
Slice = tuple[int, int, str, list[int], list[int], list[Any]]


@dataclass(slots=True)
class _Column:
    """Tokens of one choice; `ends[i]` is the end of the text published with token i."""

    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class _Run:
    """Consecutive indices of one choice: token `offset` of the choice has index `start`."""

    choice: int
    start: int
    offset: int
    count: int


class Transcript:
    """The tokens of all choices of one job in index order, from 1."""

    def __init__(self, job_id: str, num_choices: int) -> None:
        self.job_id = job_id
        self.last = 0
        self._columns = [_Column() for _ in range(num_choices)]
        self._runs: list[_Run] = []
        self._starts: list[int] = []

    @property
    def num_choices(self) -> int:
        """Count the choices."""
        return len(self._columns)

    def append(
        self,
        choice: int,
        ids: Sequence[int],
        texts: Sequence[str],
        logprobs: Sequence[Any] = (),
    ) -> None:
        """Add tokens of one choice with the text that each of them releases."""
        if not ids:
            return
        column = self._columns[choice]
        if self._runs and self._runs[-1].choice == choice:
            self._runs[-1].count += len(ids)
        else:
            self._runs.append(_Run(choice, self.last + 1, len(column.ids), len(ids)))
            self._starts.append(self.last + 1)
        end = column.ends[-1] if column.ends else 0
        for text in texts:
            end += len(text)
            column.ends.append(end)
        column.ids.extend(ids)
        column.texts.extend(texts)
        column.logprobs.extend(logprobs)
        self.last += len(ids)

    def append_one(self, choice: int, token_id: int, text: str) -> None:
        """Add one token without logprobs: most steps bring just that, so it is kept short."""
        runs = self._runs
        if not runs or runs[-1].choice != choice:
            self.append(choice, (token_id,), (text,))
            return
        column = self._columns[choice]
        runs[-1].count += 1
        column.ids.append(token_id)
        column.texts.append(text)
        column.ends.append(column.ends[-1] + len(text))
        self.last += 1

    def restore(self, events: Iterable[Event]) -> None:
        """Add token events read from a log, in index order."""
        for event in events:
            start = event.ends[-1] - len(event.text)
            cuts = [start, *event.ends]
            texts = [
                event.text[low - start : high - start]
                for low, high in zip(cuts, event.ends, strict=False)
            ]
            self.append(event.choice, event.ids, texts, event.logprobs)

    def event_after(self, index: int, epoch: int) -> Event | None:
        """Return everything after `index` that fits in one entry: one choice, no gap."""
        if index >= self.last:
            return None
        choice, start, text, ids, ends, logprobs = self.slice_after(index)
        to = start + len(ids) - 1
        return Event(
            self.job_id,
            epoch,
            choice,
            start,
            to,
            text=text,
            ids=tuple(ids),
            ends=tuple(ends),
            logprobs=tuple(logprobs),
        )

    def slice_after(self, index: int, limit: int | None = None) -> Slice:
        """Return at most `limit` tokens after `index` that fit in one entry; there is one."""
        run = self._runs[-1]
        if index + 1 < run.start:
            run = self._runs[bisect_right(self._starts, index + 1) - 1]
        column = self._columns[run.choice]
        low = run.offset + index + 1 - run.start
        high = run.offset + run.count
        if limit is not None:
            high = min(high, low + limit)
        texts = column.texts
        return (
            run.choice,
            index + 1,
            texts[low] if high == low + 1 else "".join(texts[low:high]),
            column.ids[low:high],
            column.ends[low:high],
            column.logprobs[low:high],
        )

    def newest(self) -> tuple[int, str, int, int] | None:
        """Return choice, text, id and end of the last token; None where there are logprobs."""
        choice = self._runs[-1].choice
        column = self._columns[choice]
        if column.logprobs:
            return None
        return choice, column.texts[-1], column.ids[-1], column.ends[-1]

    def ids_of(self, choice: int) -> tuple[int, ...]:
        """Return all token ids of a choice."""
        return tuple(self._columns[choice].ids)

    def text_of(self, choice: int) -> str:
        """Return the whole text of a choice."""
        return "".join(self._columns[choice].texts)

    def num_tokens(self, choice: int) -> int:
        """Count the tokens of a choice."""
        return len(self._columns[choice].ids)

    def result(self, epoch: int, finish: Finish) -> JobResult:
        """Return the result value that replaces the log."""
        reasons = finish.choices or (finish.reason,) * len(self._columns)
        return JobResult(
            self.job_id,
            epoch,
            finish,
            tuple(
                Choice(
                    number,
                    "".join(column.texts),
                    tuple(column.ids),
                    tuple(column.ends),
                    tuple(column.logprobs),
                    reasons[number],
                )
                for number, column in enumerate(self._columns)
            ),
            tuple((run.choice, run.start, run.start + run.count - 1) for run in self._runs),
        )
