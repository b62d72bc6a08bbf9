"""The endpoint of `tokenbus serve`: where it is, whether it answers, and lines that try it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shlex
import socket
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Self

from tokenbus.producer.errors import RequestInvalid

_PATH = "/v1/chat/completions"
_QUESTION = "Two sentences about rain:"
# Variable that the printed lines take the key from: a key itself is not for the screen.
_KEY = "TOKENBUS_API_KEY"
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - what it means
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the gateway listens, and the name of the model that it serves."""

    host: str
    port: int
    model: str
    has_key: bool = False

    @property
    def url(self) -> str:
        """Return the address that a browser of this machine would take."""
        host = _ANYWHERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @classmethod
    def at(cls, host: str, port: int, model: str, *, has_key: bool = False) -> Self:
        """Return the endpoint at a port that is free; port 0 is any such.

        Raises: RequestInvalid where nothing can listen.
        """
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, protocol) as probe:
                # As the gateway does, so that the port of one that has just ended passes.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                probe.listen(1)
                return cls(host, probe.getsockname()[1], model, has_key)
        except OSError as error:
            reason = error.strerror or str(error)
        raise RequestInvalid("port", f"{host}:{port}: {reason}")

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until the endpoint says that it can answer; tell whether it did in time."""
        deadline = time.monotonic() + timeout_s
        while not self._is_ready():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def _is_ready(self) -> bool:
        host = _ANYWHERE.get(self.host, self.host)
        connection = http.client.HTTPConnection(host, self.port, timeout=2)
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        return False

    def curl_line(self) -> str:
        """Return a command line that asks the endpoint."""
        headers = ["-H", "Content-Type: application/json"]
        body = json.dumps({"model": self.model, "messages": [_turn()]})
        words = [f"{self.url}{_PATH}", *headers, "-d", body]
        line = f"curl {shlex.join(words)}"
        return f'{line} -H "Authorization: Bearer ${_KEY}"' if self.has_key else line

    def python_line(self) -> str:
        """Return the same in Python, by OpenAI's client where this interpreter has it."""
        key = f"os.environ['{_KEY}']" if self.has_key else "'none'"
        if find_spec("openai") is not None:
            code = (
                f"import os, openai; bus = openai.OpenAI(base_url='{self.url}/v1', api_key={key});"
                f" print(bus.chat.completions.create(model={self.model!r}, messages=[{_turn()!r}])"
                ".choices[0].message.content)"
            )
        else:
            headers = f"{{'Content-Type': 'application/json', 'Authorization': 'Bearer ' + {key}}}"
            body = f"json.dumps({{'model': {self.model!r}, 'messages': [{_turn()!r}]}}).encode()"
            code = (
                "import json, os, urllib.request as web;"
                f" ask = web.Request('{self.url}{_PATH}', {body}, {headers});"
                " print(json.load(web.urlopen(ask))['choices'][0]['message']['content'])"
            )
        # Double quotes read better, where the shell finds nothing in them to replace.
        is_plain = not set(code) & set('"$`\\!')
        quoted = f'"{code}"' if is_plain else shlex.quote(code)
        return f"{shlex.quote(sys.executable)} -c {quoted}"


def _turn() -> dict[str, str]:
    return {"role": "user", "content": _QUESTION}
