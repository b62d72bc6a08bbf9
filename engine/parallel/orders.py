"""Orders: what rank 0 tells its followers of a step, and the sequences that they keep by it.

An order holds differences, as what rank 0 sends to its device does: rows that have a new owner,
pages that sequences got since their last step, the ids of the chunks and of drafts behind them, and
who decodes. A follower makes a plan of it that its runner launches like rank 0 does its own. What
is drawn is not told in orders: it comes from rank 0 on the devices.

An order is int32 throughout: a head of counts, then its parts in the order of the head.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tokenbus.engine.sampling.plan import Feature, SamplingPlan
from tokenbus.engine.scheduling.plan import PrefillChunk, StepPlan
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from tokenbus.engine.scheduling.sequence import Sequence

# An order of this is a question: is the model sound?
PROBE = b""
_CHUNK_NUMBERS = 8
_ASKED = Request(0, (0,), SamplingParams(logprobs=0, prompt_logprobs=0))


class _Head(NamedTuple):
    features: int
    num_top_logprobs: int
    num_owners: int
    num_page_lists: int
    num_pages: int
    num_chunks: int
    num_decoding: int


@dataclass(slots=True, eq=False)
class FollowedSequence:
    """What a follower's runner asks of a sequence: see `Sequence`.

    Ids that no chunk has brought are 0: those of cached prefixes, and what was drawn. Its request
    asks for log-probabilities wherever scores are computed at all.
    """

    row: int
    num_prompt: int
    pages: list[int]
    token_ids: array[int]
    num_computed: int = 0
    num_prompt_scored: int = 0
    num_unscored: int = 0
    choice: int = 0
    matcher: None = None
    request: Request = _ASKED

    @property
    def num_scored(self) -> int:
        """Known ids that wait for no log-probabilities."""
        return len(self.token_ids) - self.num_unscored


class StepOrder(NamedTuple):
    """A step as a follower launches it; `sampling` is what rank 0 draws by."""

    plan: StepPlan
    sampling: SamplingPlan


class OrderBook:
    """What rank 0 has told of each row: whose it is, and how many of its pages."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[Sequence, int]] = {}

    def release(self, row: int) -> None:
        """Take a row from its owner, which begins anew if it ever comes back."""
        self._told.pop(row, None)

    def order(self, plan: StepPlan, sampling: SamplingPlan) -> bytes:
        """Return a step as an order."""
        owners: list[int] = []
        page_lists: list[int] = []
        pages: list[int] = []
        for seq in chain((chunk.seq for chunk in plan.prefill), plan.decode):
            row = _row_of(seq)
            owner, num_told = self._told.get(row, (None, 0))
            if owner is not seq:
                owners += (row, seq.num_prompt)
                num_told = 0
            if len(seq.pages) > num_told:
                page_lists += (row, len(seq.pages) - num_told)
                pages += seq.pages[num_told:]
            self._told[row] = (seq, len(seq.pages))
        chunks = [number for chunk in plan.prefill for number in _told_of(chunk)]
        decoding = [number for seq in plan.decode for number in (_row_of(seq), seq.num_computed)]
        head = _Head(
            sampling.features.value, sampling.num_top_logprobs,
            len(owners) // 2, len(page_lists) // 2, len(pages), len(plan.prefill), len(plan.decode),
        )  # fmt: skip
        ids = [chunk.token_ids() for chunk in plan.prefill]
        numbers = np.array([*head, *owners, *page_lists, *pages, *chunks, *decoding], np.int32)
        return b"".join((numbers.tobytes(), *(part.tobytes() for part in ids)))


class Followed:
    """The sequences of a follower, by row."""

    def __init__(self) -> None:
        self._sequences: dict[int, FollowedSequence] = {}

    def step(self, order: bytes) -> StepOrder:
        """Make of an order the step to launch."""
        numbers = _Numbers(np.frombuffer(order, np.int32))
        head = _Head(*numbers.take(len(_Head._fields)).tolist())
        for row, num_prompt in numbers.take(head.num_owners, 2).tolist():
            self._sequences[row] = FollowedSequence(row, num_prompt, [], array("i"))
        page_lists = numbers.take(head.num_page_lists, 2).tolist()
        pages = numbers.take(head.num_pages).tolist()
        for row, count in page_lists:
            self._sequences[row].pages += pages[:count]
            del pages[:count]
        chunks = numbers.take(head.num_chunks, _CHUNK_NUMBERS).tolist()
        decoding = numbers.take(head.num_decoding, 2).tolist()
        plan = StepPlan(prefill=[self._chunk(told, numbers) for told in chunks])
        for row, num_computed in decoding:
            seq: Any = self._sequences[row]
            seq.num_computed = num_computed
            plan.decode.append(seq)
        sampling = SamplingPlan(Feature(head.features), head.num_top_logprobs)
        return StepOrder(plan, sampling)

    def _chunk(self, told: list[int], numbers: _Numbers) -> PrefillChunk:
        row, start, end, samples, length, num_prompt_scored, num_unscored, num_drafted = told
        seq: Any = self._sequences[row]
        seq.token_ids.extend([0] * (length - len(seq.token_ids)))
        seq.token_ids[start:end] = array("i", numbers.take(end - start).tobytes())
        seq.num_computed = end
        seq.num_prompt_scored, seq.num_unscored = num_prompt_scored, num_unscored
        draft = tuple(numbers.take(num_drafted).tolist())
        return PrefillChunk(seq, start, end, bool(samples), draft)


class _Numbers:
    """An order while it is read."""

    def __init__(self, numbers: NDArray[np.int32]) -> None:
        self._numbers, self._at = numbers, 0

    def take(self, count: int, width: int = 1) -> NDArray[np.int32]:
        """Return the next numbers, [count] or [count, width]."""
        part = self._numbers[self._at : self._at + count * width]
        self._at += count * width
        return part if width == 1 else part.reshape(count, width)


def _row_of(seq: Sequence) -> int:
    assert seq.row is not None
    return seq.row


def _told_of(chunk: PrefillChunk) -> Iterator[int]:
    seq = chunk.seq
    yield from (_row_of(seq), chunk.start, chunk.end, int(chunk.samples), len(seq.token_ids))
    yield from (seq.num_prompt_scored, seq.num_unscored, len(chunk.draft))
