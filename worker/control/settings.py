"""Settings of the control service, read once from arguments and `TOKENBUS_*` variables."""

from __future__ import annotations

import json
from ipaddress import IPv4Network, IPv6Network  # noqa: TC003 -- pydantic reads the annotations
from pathlib import Path  # noqa: TC003 -- pydantic reads the annotations
from typing import Annotated, ClassVar

from pydantic import Field, SecretStr

from tokenbus.producer.client.backlog import Assumed
from tokenbus.worker.control.signing_key import key_bytes
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.service_settings import ServiceSettings

Seconds = Annotated[float, Field(gt=0, le=30 * 86_400)]


class ControlSettings(ServiceSettings):
    """Settings of one control service or adapter; times in seconds.

    `webhook_keys` maps a tenant to its signing key, `whsec_<base64>`; several, separated by blanks,
    sign all while a receiver changes from one to the other. `webhook_keys_file` is the same as a
    JSON file.
    """

    section: ClassVar[str] = "control"

    arq_redis_url: str | None = Field(default=None, repr=False)
    """Where arq keeps its jobs; without it, the server of the pool. It may hold a password and is
    not shown."""
    connect_timeout_s: Seconds = 30.0
    """How long the start waits for the server."""
    call_timeout_s: Seconds = 5.0
    """How long one call on the server may take."""
    result_ttl_s: Seconds = 3600.0
    """How long the result of a job can be read that this process ended."""
    log_ttl_s: Seconds = 120.0
    """How long the log of a job stays that ended without a result in its place."""
    crons: Path | None = None
    """File of the table of crons."""
    assumed_tokens_per_s: float = Field(default=Assumed().tokens_per_s, gt=0, le=1e9)
    """Rate by which waiting tokens are counted as seconds of backlog until the pool has shown
    one."""
    assumed_start_s: float = Field(default=Assumed().start_s, ge=0, le=86_400)
    """What a worker that is not ready adds to those seconds until the pool has shown a rate."""

    webhook_keys: dict[str, SecretStr] = Field(default_factory=dict)
    """Tenant to its signing key, `whsec_<base64>`; several, separated by blanks, sign all while a
    receiver changes from one to the other."""
    webhook_keys_file: Path | None = None
    """The same as a JSON file."""
    webhook_allowed_networks: list[IPv4Network | IPv6Network] = Field(default_factory=list)
    """Private networks that webhooks may reach."""
    webhook_timeout_s: float = Field(default=10.0, gt=0, le=300)
    """How long one try may take."""
    webhook_max_age_s: Seconds = 86_400.0
    """How long after the end of its job a webhook is tried."""
    webhook_backoff_s: float = Field(default=5.0, gt=0, le=3600)
    """Pause before the second try; it doubles with each."""
    webhook_max_backoff_s: Seconds = 3600.0
    """The longest pause between two tries."""
    webhook_concurrency: int = Field(default=64, ge=1, le=4096)
    """Tries under way at once."""
    # Drop with the next release.
    webhook_earlier_signature: bool = False
    """Send the header `tokenbus-signature` too, for receivers that still check it."""

    files_url: str | None = Field(default=None, repr=False)
    """Folder or URL of files, the same at all gateways and control services; without it no batches
    are run. It may hold a secret and is not shown."""
    batch_window: int = Field(default=256, ge=1, le=10_000)
    """Lines of one batch that are jobs at the same time."""
    gateway_chat_tokens: int = Field(default=1024, ge=1, le=1_000_000)
    """Tokens of a chat's answer whose line names no bound; as the gateways have it."""
    gateway_completion_tokens: int = Field(default=16, ge=1, le=1_000_000)
    """The same of a completion."""
    gateway_response_ttl_s: float = Field(default=7 * 86_400.0, gt=0, le=365 * 86_400)
    """How long a response is kept; as the gateways have it."""
    gateway_response_bytes: int = Field(default=64 * 2**20, ge=1024, le=2**40)
    """Responses of one owner, in bytes; as the gateways have it."""

    adapter_queue: str | None = Field(default=None, min_length=1, max_length=256)
    """Queue of arq that the adapter reads; without it `arq:tokenbus`, with `:<pool>` behind it for
    any pool but the default one."""
    adapter_max_jobs: int = Field(default=1000, ge=1, le=100_000)
    """Jobs of arq under way at once."""
    adapter_poll_delay_s: float = Field(default=0.02, ge=0.001, le=60)
    """Between two looks at that queue."""
    adapter_job_timeout_s: float = Field(default=3600.0, ge=10, le=86_400)
    """What arq gives a job as a whole; the job's own deadline at the pool lies 5 s before it."""
    # arq would lock a job for its whole timeout; here the lock is short and prolonged. Two adapters
    # at one job wait for the same generation.
    adapter_lock_s: float = Field(default=15.0, ge=1, le=3600)
    """How long a job of arq is locked unless that is prolonged: a killed adapter's jobs wait as
    long."""
    adapter_max_tries: int = Field(default=100, ge=1, le=100_000)
    """Tries of one job of arq."""
    adapter_result_ttl_s: Seconds = 3600.0
    """How long arq keeps a result."""

    @property
    def assumed(self) -> Assumed:
        """Return what is taken for true of a pool that has shown nothing yet."""
        return Assumed(self.assumed_tokens_per_s, self.assumed_start_s)

    @property
    def queue(self) -> str:
        """Return the arq queue of the adapter."""
        own = "arq:tokenbus" if self.pool == "default" else f"arq:tokenbus:{self.pool}"
        return self.adapter_queue or own

    def signing_keys(self) -> dict[str, tuple[str, ...]]:
        """Return the keys of every tenant. Raises: SettingsInvalid if the file is not as it says.

        The error never shows what the file holds.
        """
        keys = {tenant: key.get_secret_value() for tenant, key in self.webhook_keys.items()}
        if self.webhook_keys_file is not None:
            try:
                stored = json.loads(self.webhook_keys_file.read_text(encoding="utf-8-sig"))
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
                raise SettingsInvalid(f"webhook_keys_file: {reason}") from None
            if not isinstance(stored, dict) or not all(isinstance(k, str) for k in stored.values()):
                raise SettingsInvalid("webhook_keys_file: not an object of tenant to key")
            keys |= stored
        for tenant, each in keys.items():
            if not each.split():
                raise SettingsInvalid(f"webhook_keys.{tenant}: no key is given")
            try:
                for key in each.split():
                    key_bytes(key)
            except ValueError as error:
                raise SettingsInvalid(f"webhook_keys.{tenant}: {error}") from None
        return {tenant: tuple(each.split()) for tenant, each in keys.items()}
