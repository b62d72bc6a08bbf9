"""The record of a response: what was asked for, and where its answer is made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

# What a request includes in order to be told the logprobs of its text.
LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRecord:
    """A response as it was asked for; `created_at` in seconds since 1970.

    tenant, pool, job_id: where the job that answers it lies.
    ancestors: ids of the responses that it goes on from, the first one first.
    request: fields of the request as the response tells them.
    """

    id: str
    owner: str
    tenant: str
    pool: str
    job_id: str
    created_at: int
    model: str
    background: bool = False
    store: bool = True
    ancestors: tuple[str, ...] = ()
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def previous_id(self) -> str | None:
        """Return the id of the response that it goes on from at once."""
        return self.ancestors[-1] if self.ancestors else None

    @property
    def with_logprobs(self) -> bool:
        """Tell whether the text is told with its logprobs."""
        return LOGPROBS in (self.request.get("include") or ())

    def dump(self) -> str:
        """Return the JSON that is stored."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """Read what `dump` wrote."""
        fields = json.loads(text)
        fields["ancestors"] = tuple(fields["ancestors"])
        return cls(**fields)
