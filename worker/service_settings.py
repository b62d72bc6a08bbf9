"""Service settings: those that a worker and a control service share, and how they are read."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from tokenbus.producer.contract.keys import check_pool
from tokenbus.producer.settings import setting_problem
from tokenbus.worker.errors import SettingsInvalid


class ServiceSettings(BaseSettings):
    """Settings of one process of a pool; times in seconds.

    A variable that is empty counts as one that is not set.
    """

    model_config = SettingsConfigDict(
        env_prefix="TOKENBUS_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    # Not shown: it may hold a password.
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    pool: Annotated[str, AfterValidator(check_pool)] = "default"
    outage_timeout_s: float = Field(default=300.0, ge=0, le=86_400)
    # The backstop of a control service takes a worker for dead after two leases.
    lease_ttl_s: float = Field(default=5.0, ge=1, le=600)

    # Prometheus metrics over HTTP; no port, no server. Who may reach the host sees them.
    metrics_port: int | None = Field(default=None, ge=1, le=65_535)
    metrics_host: str = "127.0.0.1"

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Read the environment, `values` that are not None going first.

        Raises: SettingsInvalid, one sentence that names the setting.
        """
        try:
            return cls(**{name: value for name, value in values.items() if value is not None})
        except (ValidationError, SettingsError) as error:
            raise SettingsInvalid(setting_problem(error)) from None
