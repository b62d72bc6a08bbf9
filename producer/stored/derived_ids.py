"""Ids of responses, files and batches, and the jobs that belong to them.

What is told of a response is named after its job, and the jobs of a batch after the batch, so that
any process finds the one from the other. Ids of a batch's jobs hold a `~`, which no request may ask
for: nobody can have taken one before.
"""

from __future__ import annotations

import hashlib
import re
import secrets

from tokenbus.producer.contract.address import JobAddress

# Bytes of randomness in an id, twice as many characters.
_NUM_BYTES = 16
_RESPONSE = "resp_"
# In the metadata of a job: it answers a response.
RESPONSE_FIELD = "tokenbus.response"
_FILE = re.compile(r"file-[0-9a-f]{32}")
_ITEM = re.compile(r"(?:msg|rs|fc|in)_(.+)[0-9a-f]{4}")
_BATCH = re.compile(r"batch_[0-9a-f]{32}")


def response_of_job(job_id: str) -> str:
    """Return the id of the response that a job answers."""
    return f"{_RESPONSE}{job_id}"


def item_id(prefix: str, response_id: str, index: int) -> str:
    """Return the id of a response's output item (`msg`, `rs`, `fc`), by its place."""
    return f"{prefix}_{response_id.removeprefix('resp_')}{index:04x}"


def input_item_id(response_id: str, index: int) -> str:
    """Return the id of an input item that came without one."""
    return f"in_{response_id.removeprefix('resp_')}{index:04x}"


def response_of_item(text: str) -> str | None:
    """Return the id of the response that an item belongs to; None of what is no id of an item."""
    found = _ITEM.fullmatch(text)
    return None if found is None else response_of_job(found[1])


def draw_file_id() -> str:
    """Draw the id of a file that nobody can guess."""
    return f"file-{secrets.token_hex(_NUM_BYTES)}"


def is_file_id(text: str) -> bool:
    """Tell whether a text may be the id of a file."""
    return _FILE.fullmatch(text) is not None


def draw_batch_id() -> str:
    """Draw the id of a batch that nobody can guess."""
    return f"batch_{secrets.token_hex(_NUM_BYTES)}"


def is_batch_id(text: str) -> bool:
    """Tell whether a text may be the id of a batch."""
    return _BATCH.fullmatch(text) is not None


def file_of_batch(batch_id: str, part: str) -> str:
    """Return the id of a file that a batch writes: the same at every try."""
    return f"file-{hashlib.sha256(f'{batch_id} {part}'.encode()).hexdigest()[:32]}"


def job_of_line(batch_id: str, line: int, attempt: int, num_shards: int) -> str:
    """Return the id of the job of a batch's line, counted from 1: the same at every try.

    A further `attempt` is for a line whose result was lost once its job had ended.
    """
    tail = f"~{attempt}" if attempt else ""
    return f"s{line % num_shards}-{batch_id.replace('_', '~')}~{line}{tail}"


def name_of_batch(batch_id: str, tenant: str) -> str:
    """Return the name under which the pool keeps the webhook of a batch."""
    return JobAddress(batch_id.replace("_", "~"), tenant).text
