"""Settings of the gateway, read once from arguments and `TOKENBUS_*` variables."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from tokenbus.producer.contract.keys import check_pool
from tokenbus.producer.settings import BusSettings

MIN_KEY_LENGTH = 8


def is_loopback(host: str) -> bool:
    """Tell whether nobody but this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class GatewaySettings(BusSettings):
    """Settings of one gateway process; times in seconds, sizes in bytes."""

    # The pool of requests that name no model.
    pool: Annotated[str, AfterValidator(check_pool)] = "default"
    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8000, ge=0, le=65_535)

    # Names under which `pool` is asked for; other names of pools or models; what is taken instead
    # where a pool has no worker that can run jobs.
    gateway_model_names: tuple[str, ...] = ()
    gateway_aliases: dict[str, str] = Field(default_factory=dict)
    gateway_fallbacks: dict[str, list[str]] = Field(default_factory=dict)

    # Whether requests need a key. `auto`: unless the door is on the loopback, no key was given here
    # and none is stored.
    gateway_auth: Literal["auto", "keys", "off"] = "auto"
    gateway_api_keys: tuple[SecretStr, ...] = Field(default=(), repr=False)
    gateway_cors_origins: tuple[str, ...] = ()

    # Whether the API is served beside the board, or the board alone.
    gateway_serves_api: bool = True

    # Refuse requests with fields that are not known, in place of a header that names them.
    gateway_strict: bool = False
    gateway_max_body_bytes: int = Field(default=8 * 2**20, ge=1024, le=2**31)
    gateway_max_header_bytes: int = Field(default=32 * 1024, ge=4096, le=2**20)
    # How long a body may take to arrive, and a request without a stream to be answered.
    gateway_body_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    gateway_answer_timeout_s: float = Field(default=600.0, gt=0, le=86_400)
    # How long a job goes on without anyone who reads it; 0 cancels it at once, and none is resumed.
    gateway_grace_s: float = Field(default=30.0, ge=0, le=3600)
    # Comments between events, for proxies that close what is silent.
    gateway_keepalive_s: float = Field(default=10.0, gt=0, le=600)
    gateway_drain_s: float = Field(default=10.0, ge=0, le=3600)
    # Tokens of an answer where the request says nothing: of a chat, and of a completion.
    gateway_chat_tokens: int = Field(default=1024, ge=1, le=1_000_000)
    gateway_completion_tokens: int = Field(default=16, ge=1, le=1_000_000)

    # The folder or URL of files, the same at all gateways and control services; None keeps none.
    files_url: str | None = Field(default=None, repr=False)
    # Bytes of one upload, and of all files of one owner.
    gateway_file_bytes: int = Field(default=200 * 2**20, ge=1024, le=2**40)
    gateway_owner_file_bytes: int = Field(default=10 * 2**30, ge=1024, le=2**50)
    # How long a response is kept, and how many bytes of one owner.
    gateway_response_ttl_s: float = Field(default=7 * 86_400.0, gt=0, le=365 * 86_400)
    gateway_response_bytes: int = Field(default=64 * 2**20, ge=1024, le=2**40)

    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        """Refuse a door that is open to others and asks for no key."""
        if self.gateway_auth == "off":
            if not is_loopback(self.gateway_host):
                raise ValueError(
                    f"gateway_auth: off is for the loopback alone, not for {self.gateway_host}"
                )
            if self.gateway_api_keys:
                raise ValueError("gateway_auth: is off, and gateway_api_keys has keys")
        for key in self.gateway_api_keys:
            if len(key.get_secret_value()) < MIN_KEY_LENGTH:
                raise ValueError(f"gateway_api_keys: a key has {MIN_KEY_LENGTH} letters or more")
        return self

    @property
    def is_local(self) -> bool:
        """Tell whether the door is on the loopback."""
        return is_loopback(self.gateway_host)
