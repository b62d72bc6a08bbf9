"""The tools of a batch's run: the way to pool, records and files, and its bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.stored.stored_batches import StoredBatches
    from tokenbus.producer.stored.stored_files import StoredFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTools:
    """The way to pool, records and files, and the bounds of a run.

    window: lines of one batch that are in the queue at once.
    max_tokens: by endpoint, of an answer whose request names no bound.
    """

    client: AsyncClient
    batches: StoredBatches
    files: StoredFiles
    window: int
    max_tokens: Mapping[str, int]
