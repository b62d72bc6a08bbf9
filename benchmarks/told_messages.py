"""What a token costs a publisher without a server: text, transcript, delta, packing, in CPU time.

64 jobs get a token a step, as plain text, as the arguments of a call, or as reasoning; the lower
quartile of the steps counts.

    python -P benchmarks/told_messages.py --kind plain
    python -P benchmarks/told_messages.py --kind call --tokens 4
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from tokenbus.engine.containment import Containment
from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import EngineStats
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.producer.scripts.append_batch import AppendBatch
from tokenbus.worker.messages.engine import StepRecord
from tokenbus.worker.messages.publishing import TakeOver, TextRules
from tokenbus.worker.publishing.job_log import JobLog
from tokenbus.worker.publishing.log_states import Turn
from tokenbus.worker.publishing.packing import add_tokens
from tokenbus.worker.publishing.step_reader import StepReader

if TYPE_CHECKING:
    from collections.abc import Sequence

NUM_JOBS = 64
NUM_STEPS = 1200
# What an answer begins with; words follow.
HEADS = {
    "plain": b"",
    "content": b"",
    "call": b'<tool_call>\n{"name": "now", "arguments": {"town": "',
    "reasoning": b"<think>\n",
}


def _job(key: int, chat: JobChat | None, queue: list[JobLog]) -> JobLog:
    rules = TextRules(num_choices=1, max_tokens=10_000, prompt_tail=(1,), chat=chat)
    order = TakeOver(
        key=key, job_id=f"s0-j{key}", epoch=1, prompt_tokens=1, rules=rules, is_ahead=True
    )
    job = JobLog(order, enqueue=queue.append)
    job.restore((), build_null_tokenizer())
    job.take_over()
    return job


def _step(ids: Sequence[int]) -> StepRecord:
    """Return a step that brings every job the same tokens."""
    return StepRecord(
        request_ids=list(range(NUM_JOBS)),
        choices=[0] * NUM_JOBS,
        counts=[len(ids)] * NUM_JOBS,
        token_ids=[*ids] * NUM_JOBS,
        ends=[],
        logprobs=[],
        prompt_logprobs=[],
        admitted=[],
        preempted=[],
        stats=EngineStats(9, 1, 0, NUM_JOBS, 0),
        sent_at=0.0,
    )


def _measure(kind: str, width: int) -> float:
    """Return the nanoseconds of a token."""
    chat = None if kind == "plain" else JobChat("qwen3", {"now": {}})
    queue: list[JobLog] = []
    jobs = {key: _job(key, chat, queue) for key in range(NUM_JOBS)}
    reader = StepReader(jobs, queue.append, lambda _: None, Containment())
    ids = [*HEADS[kind], *(300 + index % 200 for index in range(NUM_STEPS * width))]
    spent: list[int] = []
    for first in range(0, NUM_STEPS * width, width):
        step = _step(ids[first : first + width])
        began = time.process_time_ns()
        for _ in reader.take(step):
            pass
        batch = AppendBatch()
        for job in queue:
            job.num_logged = add_tokens(job, batch, None)
            job.num_entries += 1
            job.turn = Turn.NONE
        queue.clear()
        batch.pack()
        spent.append(time.process_time_ns() - began)
    return sorted(spent)[len(spent) // 4] / NUM_JOBS / width


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=HEADS, default="plain")
    parser.add_argument("--tokens", type=int, default=1, help="of each job in a step")
    args = parser.parse_args()
    print(f"{args.kind}: {_measure(args.kind, args.tokens):,.0f} ns of CPU a token")
    return 0


if __name__ == "__main__":
    sys.exit(main())
