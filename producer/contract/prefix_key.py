"""The prefix key names the beginning of a prompt: jobs of one key may share cached pages."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from tokenbus.producer.contract.cache_scope import NO_GROUPS, cache_scope

if TYPE_CHECKING:
    from tokenbus.producer.contract.cache_scope import CacheGroups
    from tokenbus.producer.contract.schema import JobRequest

# What is shorter is computed again faster than it is worth waiting for: about 256 tokens.
MIN_CHARACTERS = 1024
MIN_IDS = 256


def prefix_key(request: JobRequest, groups: CacheGroups = NO_GROUPS) -> str:
    """Name the beginning of a request's prompt, empty if there is little of it.

    It is the tools and system messages, or without any the beginning of the prompt or first
    message, inside one cache scope (`groups` is the owner's list). Of a cache group it is the group
    and how the prompt begins: those of one group that differ there share less than is worth a name,
    and go by the group's alone where they are short.
    """
    head = _head(request)
    if request.cache_group is None:
        if not head:
            return ""
        scope, kind = request.tenant, b""
    else:
        scope, kind, head = cache_scope(request, groups), b"group", head[:MIN_CHARACTERS]
    digest = blake2b(scope.encode() + b"\n", digest_size=12, person=kind)
    digest.update(head.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _head(request: JobRequest) -> str:
    """Return the text that decides; empty if it is too short."""
    if request.token_ids is not None:
        ids = request.token_ids[:MIN_IDS]
        return ids.tobytes().hex() if len(ids) == MIN_IDS else ""
    if request.prompt is not None:
        return _beginning(request.prompt)
    messages = request.messages or []
    num_system = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    parts = [message.content or "" for message in messages[:num_system]]
    if request.tools and request.tool_choice != "none":
        parts += [tool.model_dump_json(exclude_none=True) for tool in request.tools]
    if parts:
        head = "\n".join(parts)
        return head if len(head) >= MIN_CHARACTERS else ""
    return _beginning(messages[0].content or "")


def _beginning(text: str) -> str:
    return text[:MIN_CHARACTERS] if len(text) >= MIN_CHARACTERS else ""
