"""The record of a file, and how OpenAI's API spells it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

# What may be asked for, in seconds from the creation of a file on.
MIN_LIFE_S, MAX_LIFE_S = 3600, 30 * 86_400


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file of an owner; times in seconds since 1970, `expires_at` None for one that stays."""

    id: str
    owner: str
    filename: str
    purpose: str
    num_bytes: int
    created_at: int
    expires_at: int | None = None

    @property
    def content(self) -> str:
        """Return the name of its bytes in the content store."""
        return f"{self.owner}/{self.id}"

    def dump(self) -> str:
        """Return the JSON that is stored."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """Read what `dump` wrote."""
        return cls(**json.loads(text))

    def wire(self) -> dict[str, Any]:
        """Return the file object of the API."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.num_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }
