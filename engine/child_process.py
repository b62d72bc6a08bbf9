"""Child processes of the engine: how they end with it, and the messages between them.

A child runs `python -P -m MODULE PARENT_PID FD…` and is told the rest through its descriptors.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

_PR_SET_PDEATHSIG = 1
_LENGTH = struct.Struct("<Q")


def send_message(sock: socket.socket, message: Any) -> None:
    """Send a value of JSON, framed by its length."""
    body = json.dumps(message).encode()
    sock.sendall(_LENGTH.pack(len(body)) + body)


def receive_message(sock: socket.socket) -> Any:
    """Receive a value of JSON.

    Raises: ConnectionError at the end of the stream; TimeoutError as the socket is set.
    """
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size))
    return json.loads(_exactly(sock, length))


def begin_as_child(parent_pid: int) -> None:
    """Leave signals of the terminal to the parent, and have the kernel end this process with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    die_with(parent_pid)


def die_with(parent_pid: int) -> None:
    """Have the kernel end this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def _exactly(sock: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        chunk = sock.recv(min(num_bytes - len(received), 1 << 20))
        if not chunk:
            raise ConnectionError("the peer hung up")
        received += chunk
    return bytes(received)
