"""Service settings: those that a worker and a control service share, and how they are read."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from tokenbus.producer.contract.keys import check_pool
from tokenbus.producer.settings import BusSettings
from tokenbus.worker.errors import SettingsInvalid


class ServiceSettings(BusSettings):
    """Settings of one process of a pool; times in seconds."""

    invalid: ClassVar[type[Exception]] = SettingsInvalid

    pool: Annotated[str, AfterValidator(check_pool)] = "default"
    """Name of the pool, the workers that serve one model."""
    outage_timeout_s: float = Field(default=300.0, ge=0, le=86_400)
    """How long a process goes on while its server is away, before it ends."""
    lease_ttl_s: float = Field(default=5.0, ge=1, le=600)
    """How long a worker that is not heard of counts as alive. The backstop of a control service
    takes one for dead after two of it."""

    metrics_port: int | None = Field(default=None, ge=1, le=65_535)
    """Port of `/metrics`, `/healthz` and `/readyz`; without it nothing listens."""
    metrics_host: str = "127.0.0.1"
    """Where that port is. Who may reach it sees the metrics."""
    metrics_tenants: int = Field(default=20, ge=0, le=1000)
    """Tenants that metrics tell apart, the first that come; all others are `other`."""
    metrics_tenant_names: list[str] = Field(default_factory=list)
    """Tenants that metrics tell apart in any case."""

    trace_endpoint: str | None = Field(default=None, repr=False)
    """URL of a collector of spans, OTLP over HTTP; without it spans go to whatever provider of
    OpenTelemetry is set up. It may hold a secret and is not shown."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """How it is logged; `auto` is JSON unless a person watches."""
