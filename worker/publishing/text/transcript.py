"""The transcript of a job: all its tokens by index, what the log holds and what it lacks.

It stays in memory until the job has ended, so that a log which lost its last writes can be
re-appended from any index.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.events import event_head
from tokenbus.producer.contract.logprobs import extend_column
from tokenbus.producer.contract.result import Choice, JobResult, dump_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenbus.producer.contract.events import Event, Finish


# Choice, first index, text, ids, ends and logprobs of the tokens of one entry.
Slice = tuple[int, int, str, list[int], list[int], list[Any]]


@dataclass(slots=True)
class _Column:
    """Tokens of one choice; `ends[i]` is the end of the text published with token i.

    `logprobs` has an entry per token once any token has one; None is one that its owner left out.
    """

    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class _Run:
    """Consecutive indices of one choice: token `offset` of the choice has index `start`.

    The last run of a transcript is counted when the next one begins.
    """

    choice: int
    start: int
    offset: int
    count: int = 0


class Transcript:
    """The tokens of all choices of one job in index order, from 1."""

    def __init__(self, job_id: str, num_choices: int) -> None:
        self.job_id = job_id
        self.last = 0
        self._columns = [_Column() for _ in range(num_choices)]
        self._runs: list[_Run] = []
        self._starts: list[int] = []
        # The choice of the last run, its column, and the end of its text.
        self._choice = -1
        self._column = _Column()
        self._end = 0

    @property
    def num_choices(self) -> int:
        """Count the choices."""
        return len(self._columns)

    @property
    def num_runs(self) -> int:
        """Count the runs: how many entries all tokens need at the least."""
        return len(self._runs)

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
        if choice != self._choice:
            self._begin_run(choice)
        column = self._column
        for text in texts:
            self._end += len(text)
            column.ends.append(self._end)
        extend_column(column.logprobs, len(column.ids), logprobs, len(ids))
        column.ids.extend(ids)
        column.texts.extend(texts)
        self.last += len(ids)

    def append_one(self, choice: int, token_id: int, text: str) -> None:
        """Add one token without logprobs: most steps bring just that, so it is kept short."""
        if choice != self._choice:
            self._begin_run(choice)
        column = self._column
        self._end = end = self._end + len(text)
        column.ids.append(token_id)
        column.texts.append(text)
        column.ends.append(end)
        self.last += 1

    def _begin_run(self, choice: int) -> None:
        if self._runs:
            self._runs[-1].count = self._count(self._runs[-1])
        self._choice, self._column = choice, self._columns[choice]
        self._end = self._column.ends[-1] if self._column.ends else 0
        self._runs.append(_Run(choice, self.last + 1, len(self._column.ids)))
        self._starts.append(self.last + 1)

    def _count(self, run: _Run) -> int:
        """Count the tokens of a run."""
        return len(self._column.ids) - run.offset if run is self._runs[-1] else run.count

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

    def slice_after(self, index: int, limit: int | None = None) -> Slice:
        """Return at most `limit` tokens after `index` that fit in one entry; there is one."""
        run = self._runs[-1]
        if index + 1 < run.start:
            run = self._runs[bisect_right(self._starts, index + 1) - 1]
        column = self._columns[run.choice]
        low = run.offset + index + 1 - run.start
        high = run.offset + self._count(run)
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
        column = self._column
        if column.logprobs:
            return None
        return self._choice, column.texts[-1], column.ids[-1], self._end

    def place_of(self, index: int) -> int:
        """Return which token of its choice, from 0, the token of that index is; there is one."""
        run = self._runs[bisect_right(self._starts, index) - 1]
        return run.offset + index - run.start

    def part_of(self, choice: int, low: int, high: int) -> tuple[str, list[int]]:
        """Return text and ends of tokens `low` to `high` - 1 of a choice, counted from 0."""
        column = self._columns[choice]
        return "".join(column.texts[low:high]), column.ends[low:high]

    def has_logprobs(self, choice: int) -> bool:
        """Tell whether a token of a choice has logprobs."""
        return bool(self._columns[choice].logprobs)

    def ids_of(self, choice: int) -> tuple[int, ...]:
        """Return all token ids of a choice."""
        return tuple(self._columns[choice].ids)

    def text_of(self, choice: int) -> str:
        """Return the whole text of a choice."""
        return "".join(self._columns[choice].texts)

    def num_tokens(self, choice: int) -> int:
        """Count the tokens of a choice."""
        return len(self._columns[choice].ids)

    def dump_result(
        self,
        epoch: int,
        finish: Finish,
        finish_json: str,
        version: int,
        prompt_logprobs: tuple[Any, ...] = (),
    ) -> str:
        """Return the result value as it is stored."""
        if prompt_logprobs or any(column.logprobs for column in self._columns):
            result = self.result(epoch, finish)
            whole = replace(result, prompt_logprobs=prompt_logprobs, version=version)
            return whole.dump(finish_json)
        reasons = finish.choices or (finish.reason,) * len(self._columns)
        choices = [
            {
                "text": "".join(column.texts),
                "ids": column.ids,
                "ends": column.ends,
                "reason": reasons[number],
            }
            for number, column in enumerate(self._columns)
        ]
        head = event_head(self.job_id, version)
        return dump_plain(head, epoch, choices, self._spans(), finish_json)

    def _spans(self) -> list[tuple[int, int, int]]:
        """Return choice, first and last index of each run."""
        return [(run.choice, run.start, run.start + self._count(run) - 1) for run in self._runs]

    def result(self, epoch: int, finish: Finish) -> JobResult:
        """Return the result value that replaces the log."""
        reasons = finish.choices or (finish.reason,) * len(self._columns)
        address = JobAddress.parse(self.job_id)
        return JobResult(
            address.job_id,
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
            tuple(self._spans()),
            tenant=address.tenant,
        )
