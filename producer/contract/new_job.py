"""New jobs: a request as the queue stores it, with id and seed drawn and the cost weighed."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.cache_scope import NO_GROUPS, cache_key
from tokenbus.producer.contract.keys import WIRE_VERSION
from tokenbus.producer.contract.prefix_key import prefix_key
from tokenbus.producer.contract.schema import SEED_BITS, JobRequest, StoredRequest
from tokenbus.producer.contract.token_ids import pack_ids
from tokenbus.producer.errors import RequestInvalid

if TYPE_CHECKING:
    from tokenbus.producer.contract.cache_scope import CacheGroups


@dataclass(frozen=True, slots=True)
class NewJob:
    """What `submit` stores; `output_tokens` is max_tokens, per choice.

    `job_id` is the text of the job's address, `version` the wire version that it keeps.
    `callback` is the JSON of where and with which metadata a webhook tells of the end, or empty.
    `listen` is the secret of the client that listens, or empty. `model` is the model that is asked
    for, or empty; it stands beside the request, which earlier releases read and that knew none.
    `output_tokens` is one at least, which the queue asks of every job.
    """

    job_id: str
    tenant: str
    priority: int
    prompt_tokens: int
    output_tokens: int
    n: int
    request: str
    digest: str
    idempotency: str = ""
    weight: float = 1.0
    deadline_ms: int | None = None
    not_before_ms: int = 0
    prefix: str = ""
    callback: str = ""
    version: int = WIRE_VERSION
    listen: str = field(default="", repr=False)
    model: str = ""


def new_job(
    request: JobRequest,
    weight: float = 1.0,
    num_shards: int = 1,
    *,
    reserved_id: str = "",
    groups: CacheGroups = NO_GROUPS,
    listen: str = "",
) -> NewJob:
    """Turn a request into what the queue stores; draws the job id and the seed where open.

    The id says which of `num_shards` holds the job's log. A `reserved_id` takes its place: one that
    no request can name, for jobs of the pool's own services. `groups` is the owner's list of cache
    groups, `listen` the secret under which the submitter listens.
    The digest that tells a repeated submit from a conflicting one covers neither of the two, and is
    the same under every wire version.
    """
    key = cache_key(request)
    if key is not None:
        request = StoredRequest.of(request, key)
    chosen_id = reserved_id or request.id or draw_id(num_shards)
    told = _told(request)
    # A reserved id is none of the schema's: the address alone names the job.
    drawn = "" if reserved_id else f',"id":"{chosen_id}"'
    if request.seed is None:
        drawn += f',"seed":{secrets.randbits(SEED_BITS)}'
    name = request.idempotency_key
    return NewJob(
        job_id=JobAddress(chosen_id, request.tenant).text,
        tenant=request.tenant,
        priority=request.priority,
        prompt_tokens=request.estimate_prompt_tokens(),
        output_tokens=max(request.max_tokens, 1),
        n=request.n,
        request=f'{{"v":{request.stored_version}{drawn}{told}',
        digest=_digest(request, told),
        idempotency=_idempotency(request.tenant, name) if name is not None else "",
        weight=weight,
        deadline_ms=None if request.deadline_s is None else int(request.deadline_s * 1000),
        not_before_ms=int((request.not_before_s or 0) * 1000),
        prefix=prefix_key(request, groups),
        callback=_callback(request),
        version=request.v,
        # Version 1 knew no such channel, and its events do not tell whose they are.
        listen=listen if request.v > 1 else "",
        model=request.model or "",
    )


def draw_id(num_shards: int = 1) -> str:
    """Draw a job id that nobody can guess."""
    shard = 0 if num_shards == 1 else secrets.randbelow(num_shards)
    return f"s{shard}-{secrets.token_hex(12)}"


def digest_of(request: JobRequest) -> str:
    """Return the digest of a request without its id; the stored form where there is a secret."""
    return _digest(request, _told(request))


def _told(request: JobRequest) -> str:
    """Return the JSON of a request behind its version, without its id: what a digest covers.

    It is written once for digest and store: writing it costs more than all else of a submit.
    """
    bare = request
    if request.id is not None or request.model is not None:
        bare = request.model_copy(update={"id": None, "model": None})
    return bare.dump().removeprefix(f'{{"v":{request.v}')


def _digest(request: JobRequest, told: str) -> str:
    """Digest what is asked for: who follows the trace of it is no part, a retry has another."""
    ids = request.token_ids
    if ids is not None or request.traceparent is not None:
        told = _told(request.model_copy(update={"token_ids": None, "traceparent": None}))
    covered = f'{{"v":1{told}'.encode() + (b"" if ids is None else pack_ids(ids))
    if request.model is not None:
        covered += b"\n" + request.model.encode()
    return hashlib.sha256(covered).hexdigest()[:32]


def _callback(request: JobRequest) -> str:
    """Return what the webhook needs of the request, which goes when the job ends."""
    if request.callback_url is None:
        return ""
    wire: dict[str, object] = {"url": request.callback_url, "metadata": request.metadata}
    if request.traceparent is not None:
        wire["traceparent"] = request.traceparent
    return json.dumps(wire, separators=(",", ":"))


def _idempotency(tenant: str, key: str) -> str:
    """Return the name under which a tenant's key is remembered."""
    return hashlib.sha256(f"{tenant}\n{key}".encode()).hexdigest()[:40]


def as_request(
    given: str | JobRequest | Mapping[str, Any] | None, fields: dict[str, Any]
) -> JobRequest:
    """Check what the caller gave. Raises: RequestInvalid."""
    if isinstance(given, JobRequest):
        if not fields:
            return given.checked()
        return JobRequest.of_fields(given.model_dump(exclude_unset=True) | fields)
    if given is None:
        return JobRequest.of_fields(fields)
    if not isinstance(given, Mapping):
        return JobRequest.of_fields({"prompt": given, **fields})
    if not all(isinstance(name, str) for name in given):
        raise RequestInvalid("job", "the name of a field is no text")
    return JobRequest.of_fields(given)
