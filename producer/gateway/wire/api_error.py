"""Errors in OpenAI's shape: what is wrong, its status, type, code and the field that is meant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# What OpenAI's API calls the kinds of errors, by status.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "overloaded_error",
}

# By the clients of OpenAI, beside those of 500 and above.
_TRIED_AGAIN = (408, 409, 429)


@dataclass(eq=False)
class ApiError(Exception):
    """A refusal or failure that goes to the caller as JSON.

    `param` is the path of the field as the caller has spelled it, `code` a stable word. `headers`
    go with the response, `Retry-After` for instance.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    type: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Name the kind by the status, where none is given."""
        super().__init__(self.message)
        if not self.type:
            fallback = "invalid_request_error" if self.status < 500 else "server_error"
            self.type = _TYPES.get(self.status, fallback)

    def told_headers(self) -> dict[str, str]:
        """Return the headers of the response.

        OpenAI's clients send again by themselves what has one of these statuses, unless they are
        told not to: an error that names no time to come back at will be the same then.
        """
        is_tried_again = self.status in _TRIED_AGAIN or self.status >= 500
        if is_tried_again and "Retry-After" not in self.headers:
            return {"X-Should-Retry": "false", **self.headers}
        return dict(self.headers)

    def body(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "error": {
                "message": _shown(self.message),
                "type": self.type,
                "param": None if self.param is None else _shown(self.param),
                "code": self.code,
            }
        }


def _shown(text: str) -> str:
    """Return a text as UTF-8 carries it: what was sent may be quoted, half surrogates too."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def not_found(what: str, name: str) -> ApiError:
    """Return the error for a thing that is not there, or belongs to somebody else."""
    return ApiError(404, f"No {what} found with id '{name}'.", code="not_found")
