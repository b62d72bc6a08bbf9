"""Packing: what a job lacks in its log, put into the calls that write it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.producer.scripts.log import End
from tokenbus.worker.publishing.log_states import LogState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.scripts.append_batch import AppendBatch
    from tokenbus.producer.scripts.begin_batch import BeginBatch
    from tokenbus.worker.publishing.job_log import JobLog
    from tokenbus.worker.publishing.text.transcript import Transcript

# A whole answer of more entries or tokens is logged piece by piece: nobody waits for one call.
_MAX_ENTRIES = 16
_MAX_TOKENS = 512


def add_tokens(job: JobLog, batch: AppendBatch, limit: int | None) -> int:
    """Add what the log lacks, at most `limit` tokens, to a batch; return its last index."""
    transcript = _transcript_of(job)
    job_id, epoch, start = job.job_id, job.epoch, job.num_logged + 1
    if start == job.last and (newest := transcript.newest()) is not None:
        batch.add_one(job_id, epoch, start, newest, job.num_entries, job.version)
        return start
    entry = transcript.slice_after(job.num_logged, limit)
    choice, start, text, ids, ends, logprobs = entry
    wire = _json_of(logprobs)
    entries, version = job.num_entries, job.version
    delta = "" if job.messages is None else job.messages.delta(transcript, entry)
    batch.add(job_id, epoch, choice, start, text, ids, ends, wire, entries, version, delta)
    return start + len(ids) - 1


def add_beginning(job: JobLog, batch: BeginBatch) -> tuple[int, int, str]:
    """Add a job that has no log: its first token, or its whole answer where it is over.

    Returns: the last index, the number of entries and the finish; that is empty where more follows.
    """
    transcript = _transcript_of(job)
    is_whole = (
        job.state is LogState.ENDING
        and transcript.num_runs <= _MAX_ENTRIES
        and job.last <= _MAX_TOKENS
    )
    batch.add(job.job_id, job.epoch, str(job.key), job.listen, job.version)
    messages = job.messages
    batch.tell("" if messages is None else messages.chat, job.prompt_tokens)
    # A first token goes alone, unless all are there.
    limit, until = (None, job.last) if is_whole else (1, 1)
    to = num_entries = 0
    while to < until:
        entry = transcript.slice_after(to, limit)
        choice, start, text, ids, ends, logprobs = entry
        delta = "" if messages is None else messages.delta(transcript, entry)
        batch.tokens(choice, start, text, ids, ends, _json_of(logprobs), delta)
        to = start + len(ids) - 1
        num_entries += 1
    if not is_whole:
        return to, num_entries, ""
    finish, result, told = _end_of(job)
    batch.end(finish, result, told)
    return to, num_entries, finish


def end_of(job: JobLog) -> End:
    """Return the end of a job whose tokens are logged."""
    finish, result, told = _end_of(job)
    return End(
        job.job_id,
        job.epoch,
        job.last,
        finish,
        result,
        version=job.version,
        listen=job.listen,
        told=told,
    )


def _end_of(job: JobLog) -> tuple[str, str, str]:
    """Return finish and result as they are stored, and what the terminal event tells beside."""
    if job.finish is None:
        raise RuntimeError(f"job {job.job_id} ends without a decision")
    transcript, told = _transcript_of(job), ""
    if job.messages is not None:
        job.finish, told = job.messages.close(transcript, job.finish)
    finish = job.finish.dump()
    result = transcript.dump_result(job.epoch, job.finish, finish, job.version, job.prompt_logprobs)
    return finish, result, told


def _transcript_of(job: JobLog) -> Transcript:
    if job.transcript is None:
        raise RuntimeError(f"job {job.job_id} is to be logged and has no transcript")
    return job.transcript


def _json_of(logprobs: Sequence[Any]) -> str:
    return json.dumps(logprobs, separators=(",", ":")) if logprobs else ""
