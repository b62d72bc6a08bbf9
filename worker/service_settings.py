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
    outage_timeout_s: float = Field(default=300.0, ge=0, le=86_400)
    # The backstop of a control service takes a worker for dead after two leases.
    lease_ttl_s: float = Field(default=5.0, ge=1, le=600)

    # Prometheus metrics over HTTP; no port, no server. Who may reach the host sees them.
    metrics_port: int | None = Field(default=None, ge=1, le=65_535)
    metrics_host: str = "127.0.0.1"
    # Tenants that metrics tell apart, the first that come; all others are `other`. Those that are
    # named always have labels of their own.
    metrics_tenants: int = Field(default=20, ge=0, le=1000)
    metrics_tenant_names: list[str] = Field(default_factory=list)

    # Where spans of traced jobs go: the URL of a collector, OTLP over HTTP. It may hold a secret.
    trace_endpoint: str | None = Field(default=None, repr=False)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
