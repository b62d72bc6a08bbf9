"""`tokenbus dashboard`: the board alone, without the API of a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.gateway.command import run_gateway
from tokenbus.producer.gateway.settings import GatewaySettings
from tokenbus.producer.terminal import say

if TYPE_CHECKING:
    from collections.abc import Mapping


def run_dashboard(given: Mapping[str, Any]) -> int:
    """Serve the page until told to stop; return 0 after an orderly end, 1 if it could not start.

    Raises: ClientSettingsInvalid, UrlInvalid; ServerError where there is no server that will do.
    """
    settings = GatewaySettings.load(**given, gateway_serves_api=False)

    def tell(port: int) -> None:
        host = settings.gateway_host
        shown = f"[{host}]" if ":" in host else host
        key = "" if settings.is_local else ", for keys with a role: tokenbus keys create --role"
        say(f"tokenbus: dashboard at http://{shown}:{port}/ui/{key}; Ctrl-C ends it")

    return run_gateway(settings, tell)
