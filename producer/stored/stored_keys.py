"""Names of the keys of what is stored: files, batches, responses; all in one hash slot.

An owner is whose a thing is, as the door derives it from a key; ids cannot be guessed, and every
look compares the owner all the same.

| name             | type   | lives                                                              |
|------------------|--------|--------------------------------------------------------------------|
| file             | string | `file:<id>`, JSON of a file's record, until it is deleted          |
| files            | zset   | `files:<owner>`, ids by creation                                   |
| file_bytes       | hash   | owner -> bytes of its files                                        |
| uploads          | hash   | `uploads:<owner>`, upload -> bytes and when it counts no more; TTL |
| file_expiries    | zset   | ids of files that expire, by when                                  |
| batch            | hash   | `batch:<id>`, record and state of a batch; TTL once it has ended   |
| batches          | zset   | `batches:<owner>`, ids by creation                                 |
| batches_open     | zset   | `batches_open:<pool>`, `<id>` of batches that have not ended       |
| batch_done       | string | `batch_done:<id>`, a bit for each line that has its output         |
| batch_parts      | list   | `batch_parts:<id>`, names of the parts of the output so far        |
| batch_lease      | string | `batch_lease:<id>`, the service that runs it; TTL of seconds       |
| response         | hash   | `response:<id>`, request, input and result; TTL                    |
| responses        | zset   | `responses:<owner>`, ids by creation                               |
| response_sizes   | hash   | `response_sizes:<owner>`, id -> bytes, `total`                     |
| responses_open   | zset   | `responses_open:<pool>`, ids whose result is not stored yet        |
"""

from __future__ import annotations

PREFIX = "{tokenbus}:"


def file(file_id: str) -> str:
    """Return the record of a file."""
    return f"{PREFIX}file:{file_id}"


def files(owner: str) -> str:
    """Return the ids of an owner's files."""
    return f"{PREFIX}files:{owner}"


def file_bytes() -> str:
    """Return the bytes of all owners."""
    return f"{PREFIX}file_bytes"


def file_expiries() -> str:
    """Return the files that expire."""
    return f"{PREFIX}file_expiries"


def uploads(owner: str) -> str:
    """Return what is being uploaded by an owner."""
    return f"{PREFIX}uploads:{owner}"


def batch(batch_id: str) -> str:
    """Return record and state of a batch."""
    return f"{PREFIX}batch:{batch_id}"


def batches(owner: str) -> str:
    """Return the ids of an owner's batches."""
    return f"{PREFIX}batches:{owner}"


def batches_open(pool: str) -> str:
    """Return the batches of a pool that have not ended."""
    return f"{PREFIX}batches_open:{pool}"


def batch_done(batch_id: str) -> str:
    """Return which lines of a batch are done."""
    return f"{PREFIX}batch_done:{batch_id}"


def batch_parts(batch_id: str) -> str:
    """Return the parts of a batch's output."""
    return f"{PREFIX}batch_parts:{batch_id}"


def batch_lease(batch_id: str) -> str:
    """Return who runs a batch."""
    return f"{PREFIX}batch_lease:{batch_id}"


def response(response_id: str) -> str:
    """Return what is kept of a response."""
    return f"{PREFIX}response:{response_id}"


def responses(owner: str) -> str:
    """Return the ids of an owner's responses."""
    return f"{PREFIX}responses:{owner}"


def response_sizes(owner: str) -> str:
    """Return the bytes of an owner's responses."""
    return f"{PREFIX}response_sizes:{owner}"


def responses_open(pool: str) -> str:
    """Return the responses of a pool whose result is not stored yet."""
    return f"{PREFIX}responses_open:{pool}"
