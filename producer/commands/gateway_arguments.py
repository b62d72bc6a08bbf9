"""Arguments of `tokenbus gateway`; what is left out comes from the environment."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tokenbus.producer.commands import arguments

if TYPE_CHECKING:
    from collections.abc import Callable


BOARD_ROLES = ("viewer", "reader", "operator")
_ROLES_HELP = (
    "viewer looks at it, reader sees prompts and answers too, operator cancels, retries, pauses and"
    " drains"
)


# One option an entry, its help below its name.
# fmt: off
def add_gateway(parser: argparse.ArgumentParser) -> None:
    """Declare what `tokenbus gateway` takes."""
    add = parser.add_argument
    add("--redis", dest="redis_url", metavar="URL", help=arguments.REDIS_HELP)
    add("--pool", type=arguments.pool_name, metavar="NAME",
        help="pool of requests that name no model (default: default)")
    add("--host", dest="gateway_host", metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1)")
    add("--port", dest="gateway_port", type=int, metavar="PORT",
        help="port to listen on, 0 = a free one (default: 8000)")
    add("--served-model-name", dest="gateway_model_names", action="append", metavar="NAME",
        help="a name under which requests may ask for the pool; may be given several times"
        " (default: those of its model)")
    add("--alias", dest="gateway_aliases", action=_Pairs, metavar="NAME=MODEL",
        help="another name of a pool or model; may be given several times (default: none)")
    add("--fallback", dest="gateway_fallbacks", action=_Pairs, read=_names, metavar="MODEL=MODEL",
        help="what is taken where a pool or model has no worker that can run jobs, several parted"
        " by commas; may be given several times (default: none)")
    add("--api-key", dest="gateway_api_keys", action="append", metavar="KEY",
        help="a key that requests may use, beside those of `tokenbus keys`; may be given several"
        " times; everyone on this machine can read it in ps, not those in TOKENBUS_GATEWAY_API_KEYS"
        " (default: none)")
    add("--api-key-role", dest="gateway_api_key_roles", action="append",
        choices=BOARD_ROLES, metavar="ROLE",
        help=f"what these keys may do at the dashboard: {_ROLES_HELP}; may be given several times"
        " (default: none, the dashboard is closed to them)")
    add("--auth", dest="gateway_auth", choices=("auto", "keys", "off"),
        help="whether requests need a key; auto: they do unless the address is on the loopback and"
        " there is no key (default: auto)")
    add("--cors-origin", dest="gateway_cors_origins", action="append", metavar="ORIGIN",
        help="an origin of web pages that may call, * for all; may be given several times"
        " (default: none)")
    add("--strict", dest="gateway_strict", action="store_true", default=None,
        help="refuse requests with fields that are not known (default: ignore and name them)")
    add("--grace-s", dest="gateway_grace_s", type=float, metavar="S",
        help="seconds in which a reader may come back to its job; 0 = a job without one is"
        " cancelled at once (default: 30)")
    add("--log-level", choices=("debug", "info", "warning", "error"),
        help="least severe event that is logged (default: info)")


def add_dashboard(parser: argparse.ArgumentParser) -> None:
    """Declare what `tokenbus dashboard` takes."""
    add = parser.add_argument
    add("--redis", dest="redis_url", metavar="URL", help=arguments.REDIS_HELP)
    add("--pool", type=arguments.pool_name, metavar="NAME",
        help="pool that is shown first (default: default)")
    add("--host", dest="gateway_host", metavar="ADDRESS",
        help="address to listen on; any but the loopback asks for a key with a role, made by"
        " `tokenbus keys create --role viewer` (default: 127.0.0.1)")
    add("--port", dest="gateway_port", type=int, default=8090, metavar="PORT",
        help="port to listen on, 0 = a free one (default: 8090)")
    add("--auth", dest="gateway_auth", choices=("auto", "keys", "off"),
        help="whether the page needs a key; auto: it does unless the address is on the loopback and"
        " there is no key (default: auto)")
    add("--log-level", choices=("debug", "info", "warning", "error"),
        help="least severe event that is logged (default: info)")


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Declare what the commands of `tokenbus keys` take."""
    commands = parser.add_subparsers(
        dest="action", title="commands", metavar="COMMAND", required=True,
        parser_class=arguments.Parser)
    create = commands.add_parser("create", help="make a key and print it, this once")
    add = create.add_argument
    add("--tenant", metavar="NAME",
        help="whose share of the pools the key uses (default: one of its own)")
    add("--name", metavar="TEXT", help="what the list calls it (default: nothing)")
    add("--weight", type=float, default=1.0, metavar="W",
        help="share of the tenant beside others, who have 1 (default: 1)")
    add("--priority", type=int, action="append", choices=(0, 1, 2), metavar="N",
        help="priority that requests may ask for, the first one being the default; may be given"
        " several times (default: 1, 0 and 2)")
    add("--allow-pool", dest="key_pools", type=arguments.pool_name, action="append", metavar="NAME",
        help="pool that the key may use; may be given several times (default: all)")
    add("--role", dest="key_roles", action="append", choices=BOARD_ROLES, metavar="ROLE",
        help=f"what the key may do at the dashboard: {_ROLES_HELP}; may be given several times"
        " (default: none, the dashboard is closed to it)")
    for kind in ("requests", "tokens"):
        for period in ("minute", "month"):
            add(f"--{kind}-per-{period}", type=int, metavar="N",
                help=f"{kind} that it has in a {period} (default: no limit)")
    listing = commands.add_parser("list", help="print a line per key, of which the key is no part")
    revoke = commands.add_parser("revoke", help="refuse a key from now on and cancel its jobs")
    revoke.add_argument("key_id", metavar="ID",
        help="id of the key, as `tokenbus keys list` tells it (required)")
    for command in (create, listing, revoke):
        command.add_argument("--redis", metavar="URL", help=arguments.REDIS_HELP)
# fmt: on


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


class _Pairs(argparse.Action):
    """Gathers `NAME=VALUE` of an option that may be given several times."""

    def __init__(
        self, *args: object, read: Callable[[str], object] = str, **kwargs: object
    ) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # argparse's own arguments
        self._read = read

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        _: str | None = None,
    ) -> None:
        """Keep a pair, or let the parser say that it is none."""
        name, equals, value = str(values).partition("=")
        if not (name and equals and value):
            parser.error(f"argument {self.option_strings[0]}: {values!a} is not {self.metavar}")
        pairs = dict(getattr(namespace, self.dest) or {})
        pairs[name] = self._read(value)
        setattr(namespace, self.dest, pairs)
