"""The record of a batch and its state, and how OpenAI's API spells them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
MAX_LINES = 50_000
# Where nothing is said: as long as a batch that has ended can be looked at.
OUTPUT_LIVES_S = 30 * 86_400
_WINDOW = re.compile(r"(\d{1,4})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_WINDOW_S = 7 * 86_400


def window_s(text: str) -> int | None:
    """Return the seconds of a completion window such as `24h`; None for what is none.

    It is a week at most.
    """
    found = _WINDOW.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    return seconds if 0 < seconds <= _MAX_WINDOW_S else None


class BatchStatus(StrEnum):
    """Where a batch stands."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED = frozenset(
    {BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRecord:
    """A batch as it was asked for; times in seconds since 1970.

    tenant, pool, priority: whose jobs its lines become, where, and how urgent.
    model: what its lines have to ask for, and what the pool's workers are asked for instead.
    key_id: the API key that has asked for it; None where keys are off, or it is no stored one.
    output_lives_s: how long its files are kept once they are written.
    """

    id: str
    owner: str
    tenant: str
    pool: str
    priority: int
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    model: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    callback_url: str | None = None
    key_id: str | None = None
    output_lives_s: int = OUTPUT_LIVES_S

    def dump(self) -> str:
        """Return the JSON that is stored."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """Read what `dump` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """What has become of a batch; `at` has the second of each status but the first.

    `ends_as` is the status that follows once the files are written.
    """

    record: BatchRecord
    status: BatchStatus
    at: dict[str, int] = field(default_factory=dict)
    total: int = 0
    completed: int = 0
    failed: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    output_file_id: str | None = None
    error_file_id: str | None = None
    ends_as: str = ""

    @property
    def id(self) -> str:
        """Return the id of the batch."""
        return self.record.id

    @classmethod
    def of_hash(cls, stored: dict[bytes, bytes]) -> Self:
        """Read the hash on the server."""
        fields = {name.decode(): value.decode() for name, value in stored.items()}
        return cls(
            record=BatchRecord.parse(fields["record"]),
            status=BatchStatus(fields["status"]),
            at={
                name.removesuffix("_at"): int(value)
                for name, value in fields.items()
                if name.endswith("_at")
            },
            total=int(fields.get("total", 0)),
            completed=int(fields.get("completed", 0)),
            failed=int(fields.get("failed", 0)),
            errors=json.loads(fields.get("errors", "[]")),
            output_file_id=fields.get("output_file_id"),
            error_file_id=fields.get("error_file_id"),
            ends_as=fields.get("ends_as", ""),
        )

    def wire(self) -> dict[str, Any]:
        """Return the batch object of the API."""
        record = self.record
        times = {
            f"{status.value}_at": self.at.get(status.value)
            for status in BatchStatus
            if status is not BatchStatus.VALIDATING
        }
        return {
            "id": record.id,
            "object": "batch",
            "endpoint": record.endpoint,
            "model": record.model,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": record.input_file_id,
            "completion_window": record.completion_window,
            "status": self.status.value,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": record.created_at,
            "expires_at": record.expires_at,
            **times,
            "request_counts": {
                "total": self.total,
                "completed": self.completed,
                "failed": self.failed,
            },
            "metadata": record.metadata,
        }
