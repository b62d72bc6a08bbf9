"""The start of traces in a process of a pool, where its settings name a collector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.producer.telemetry.trace_setup import TracingMissing, check_tracing, send_traces
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from tokenbus.worker.service_settings import ServiceSettings


def check_traces(settings: ServiceSettings) -> None:
    """Refuse a collector where what sends to it is not installed. Raises: SettingsInvalid."""
    if settings.trace_endpoint is None:
        return
    try:
        check_tracing()
    except TracingMissing as error:
        raise SettingsInvalid(str(error)) from None


def start_traces(settings: ServiceSettings, process: str) -> None:
    """Send the spans of this process from now on. Raises: SettingsInvalid if that cannot be."""
    check_traces(settings)
    if settings.trace_endpoint is not None:
        send_traces(settings.trace_endpoint, process, settings.pool)
