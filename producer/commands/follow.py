"""The events of one job on standard output, until the terminal one: of a new job or an old one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from tokenbus.producer.commands.hints import tell
from tokenbus.producer.commands.message_lines import MessageLines
from tokenbus.producer.contract.events import FINISHED_REASONS
from tokenbus.producer.terminal import visible

if TYPE_CHECKING:
    from tokenbus.producer.client.reading.event_stream import EventStream
    from tokenbus.producer.contract.events import Finish


async def follow(stream: EventStream, *, as_json: bool, is_own: bool = True) -> Finish:
    """Print a job's events: what they say, or each as a line of JSON.

    Text that goes to a terminal, or is another's than the caller's own, has its control characters
    escaped.
    """
    lines = MessageLines(is_safe=is_own and not sys.stdout.isatty())
    async for event in stream:
        if as_json:
            print(visible(json.dumps(event.dump(), ensure_ascii=False)), flush=True)
        else:
            lines.print(event)
        if event.finish is not None:
            return event.finish
    raise RuntimeError("the stream ended without a terminal event")


def ending_code(finish: Finish) -> int:
    """Say how a job ended unless it finished; return 0 if it did, else 1."""
    if finish.error is not None:
        tell(f"{finish.error.code}: {finish.error.message}")
    elif finish.reason not in FINISHED_REASONS:
        tell(f"the job was {finish.reason}")
    return 0 if finish.reason in FINISHED_REASONS else 1
