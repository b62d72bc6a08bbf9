"""Settings of the gateway, read once from arguments and `TOKENBUS_*` variables."""

from __future__ import annotations

import ipaddress
from typing import Annotated, ClassVar, Literal, Self

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

    section: ClassVar[str] = "gateway"

    pool: Annotated[str, AfterValidator(check_pool)] = "default"
    """The pool of requests that name no model."""
    gateway_host: str = "127.0.0.1"
    """Address on which the gateway listens."""
    gateway_port: int = Field(default=8000, ge=0, le=65_535)
    """Port on which the gateway listens; 0 takes a free one."""

    gateway_model_names: tuple[str, ...] = ()
    """Names under which `pool` is asked for."""
    gateway_aliases: dict[str, str] = Field(default_factory=dict)
    """Other names of pools or models."""
    gateway_fallbacks: dict[str, list[str]] = Field(default_factory=dict)
    """Model to what is taken instead where its pool has no worker that can run jobs."""

    gateway_auth: Literal["auto", "keys", "off"] = "auto"
    """Whether requests need a key. `auto`: unless the door is on the loopback, no key was given
    here and none is stored."""
    gateway_api_keys: tuple[SecretStr, ...] = Field(default=(), repr=False)
    """Keys beside those that are stored."""
    gateway_api_key_roles: tuple[Literal["viewer", "reader", "operator"], ...] = ()
    """What these keys may do at the dashboard; nothing by default, because they may be those of
    clients."""
    gateway_cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call."""

    gateway_metrics_tenants: int = Field(default=0, ge=0, le=1000)
    """Tenants that metrics tell apart, the first that come; none by default, because `/metrics`
    asks for no key."""
    gateway_serves_api: bool = True
    """Whether the API is served beside the board, or the board alone."""
    gateway_strict: bool = False
    """Refuse requests with fields that are not known, in place of a header that names them."""
    gateway_max_body_bytes: int = Field(default=8 * 2**20, ge=1024, le=2**31)
    """The largest body of a request that is no upload."""
    gateway_max_header_bytes: int = Field(default=32 * 1024, ge=4096, le=2**20)
    """The largest path and headers together."""
    gateway_body_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """How long a body may take to arrive."""
    gateway_answer_timeout_s: float = Field(default=600.0, gt=0, le=86_400)
    """How long a request without a stream may take to be answered."""
    gateway_grace_s: float = Field(default=30.0, ge=0, le=3600)
    """How long a job goes on without anyone who reads it; 0 cancels it at once, and none is
    resumed."""
    gateway_keepalive_s: float = Field(default=10.0, gt=0, le=600)
    """Between comments in a stream that says nothing, for proxies that close what is silent."""
    gateway_drain_s: float = Field(default=10.0, ge=0, le=3600)
    """How long streams may go on when the gateway closes."""
    gateway_chat_tokens: int = Field(default=1024, ge=1, le=1_000_000)
    """Tokens of a chat's answer where the request says nothing."""
    gateway_completion_tokens: int = Field(default=16, ge=1, le=1_000_000)
    """Tokens of a completion where the request says nothing."""

    files_url: str | None = Field(default=None, repr=False)
    """Folder or URL of files, the same at all gateways and control services; without it no files
    are kept and no batches run. It may hold a secret and is not shown."""
    gateway_file_bytes: int = Field(default=200 * 2**20, ge=1024, le=2**40)
    """The largest upload."""
    gateway_owner_file_bytes: int = Field(default=10 * 2**30, ge=1024, le=2**50)
    """All files of one owner."""
    gateway_response_ttl_s: float = Field(default=7 * 86_400.0, gt=0, le=365 * 86_400)
    """How long a response is kept."""
    gateway_response_bytes: int = Field(default=64 * 2**20, ge=1024, le=2**40)
    """Responses of one owner, in bytes."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged."""

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
