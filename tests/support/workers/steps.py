"""Steps as the engine process reports them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tokenbus.engine.types import EngineStats
from tokenbus.worker.messages.engine import StepRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.engine.types import Admission, FinishReason


def step(
    *,
    tokens: Mapping[int, Sequence[int]] | None = None,
    ends: Mapping[int, FinishReason] | None = None,
    admitted: Sequence[Admission] = (),
    stats: EngineStats | None = None,
    sent_at: float | None = None,
) -> StepRecord:
    """Return a step: `tokens` by the keys of jobs of one choice, `ends` of those that end in it."""
    rows = tokens or {}
    keys = list(rows)
    return StepRecord(
        request_ids=keys,
        choices=[0] * len(keys),
        counts=[len(ids) for ids in rows.values()],
        token_ids=[token_id for ids in rows.values() for token_id in ids],
        ends=[(keys.index(key), reason, None, None) for key, reason in (ends or {}).items()],
        logprobs=[],
        prompt_logprobs=[],
        admitted=list(admitted),
        preempted=[],
        stats=stats or EngineStats(9, 1, 0, len(keys), 0),
        sent_at=time.monotonic() if sent_at is None else sent_at,
    )
