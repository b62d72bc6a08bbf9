"""The check of a batch's input: every line, before any is run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.producer.stored.batch_record import MAX_LINES
from tokenbus.worker.control.batches.batch_line import MAX_LINE_BYTES, BatchLine, LineProblem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.stored.batch_record import BatchRecord
    from tokenbus.producer.stored.content_store import ContentStore

# Problems of an input that are told; the rest is most likely the same.
MAX_PROBLEMS = 50
# Empty lines count as well: the server keeps a bit for each.
_MAX_NUMBER = 4 * MAX_LINES


@dataclass(slots=True)
class InputCheck:
    """What a look at all lines has found; `problems` as the errors of a batch tell them."""

    num_lines: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)


async def input_lines(contents: ContentStore, name: str) -> AsyncIterator[tuple[int, bytes]]:
    """Yield the lines that are not empty, each with its number from 1."""
    number = 0
    async for text in contents.lines(name, MAX_LINE_BYTES):
        number += 1
        if text.strip():
            yield number, text


async def checked_input(contents: ContentStore, name: str, record: BatchRecord) -> InputCheck:
    """Read the whole input; nothing is run of one that has a problem."""
    found = InputCheck()
    seen: set[bytes] = set()
    async for number, text in input_lines(contents, name):
        found.num_lines += 1
        if found.num_lines > MAX_LINES or number > _MAX_NUMBER:
            told = f"The input has more than {MAX_LINES} lines."
            found.problems.append(LineProblem("too_many_lines", told).wire(number))
            break
        line = BatchLine.parse(number, text, record)
        problem = line if isinstance(line, LineProblem) else _repeated(line, seen)
        if problem is not None:
            found.problems.append(problem.wire(number))
        if len(found.problems) >= MAX_PROBLEMS:
            break
    if not found.num_lines:
        found.problems.append(LineProblem("empty_file", "The input has no line.").wire(1))
    return found


def _repeated(line: BatchLine, seen: set[bytes]) -> LineProblem | None:
    """Return the problem of a custom_id that an earlier line has."""
    # Digests, so that long names of many lines take little memory.
    digest = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        return LineProblem(
            "duplicate_custom_id", "An earlier line has this custom_id.", "custom_id"
        )
    seen.add(digest)
    return None
